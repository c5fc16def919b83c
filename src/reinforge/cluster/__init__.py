"""Where the concrete classes behind the roles are chosen."""
