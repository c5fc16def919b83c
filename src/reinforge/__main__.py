"""`python -m reinforge`: the command line without an installed script."""

from reinforge.cli.main import main

if __name__ == "__main__":
    main()
