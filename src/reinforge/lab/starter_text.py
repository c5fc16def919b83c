"""The texts that `reinforge rewards new` puts together. @names@ are filled in."""

HEAD = '''"""Reward functions, begun with `reinforge rewards new`. Change them: they are only a start.

A function gets the prompt, one completion, and the row: example holds every column as text, also numbers and lists.
The columns are

@columns@

Try it after each change:   reinforge rewards test @file@@options@
Golden cases stand beside it, in @cases@: add one for each mistake you find.

In the config:

    reward_fns:
@functions@
"""

'''

FUNCTIONS = """      functions: {format: @file@:format_reward, correct: @file@:correct_reward}
      weights: {format: 0.2, correct: 0.8}"""
FORM_ONLY = "      functions: {format: @file@:format_reward}"

IMPORTS = {
    "none": "import re\n\n",
    "number": "import re\n\n",
    "label": "import re\n\n",
    "text": "import re\nfrom collections import Counter\n\n",
    "list": "import ast\nimport json\nimport re\nfrom collections import Counter\n\n",
    "table": "import ast\nimport json\nimport re\n\n",
}

SHAPES = {
    "tags": '''COLUMN = "@column@"
# The parts of a completion in their order. Ask for them in data.system_prompt, or the model will not know.
TAGS = [@tags@]
ANSWER_TAG = "@answer_tag@"
PART = r"<{0}>(?:(?!</?{0}>).)*</{0}>"
LAYOUT = re.compile(r"\\s*" + r"\\s*".join(PART.format(tag) for tag in TAGS) + r"\\s*", re.DOTALL)


def answer_of(completion):
    """The text of the one answer block; None when there is none, or more than one."""
    found = re.findall(PART.format(ANSWER_TAG), completion, re.DOTALL)
    return found[0].partition(">")[2].rpartition("<")[0].strip() if len(found) == 1 else None


''',
    "hashes": '''COLUMN = "@column@"


def answer_of(completion):
    """What stands behind the one line that begins with ####; None when there is none, or more than one."""
    found = re.findall(r"^####(.*)$", completion, re.MULTILINE)
    return found[0].strip() if len(found) == 1 else None


''',
    "boxed": '''COLUMN = "@column@"


def answer_of(completion):
    """The text in the one box; None when there is none, or more than one."""
    found = re.findall(r"\\\\boxed\\{([^{}]*)\\}", completion)
    return found[0].strip() if len(found) == 1 else None


''',
}

FORM = {
    "tags": '''def format_reward(prompt, completion, example):
    """1.0 for the parts in their order and nothing else; up to 0.5 for tags that occur once each."""
    if LAYOUT.fullmatch(completion):
        return 1.0
    tags = [f"<{slash}{tag}>" for tag in TAGS for slash in ("", "/")]
    return 0.5 * sum(completion.count(tag) == 1 for tag in tags) / len(tags)


''',
    "hashes": '''def format_reward(prompt, completion, example):
    """1.0 for reasoning and #### with the answer on the last line; 0.5 without reasoning, or on another line."""
    if not answer_of(completion):
        return 0.0
    reasoning, _, end = completion.rpartition("####")
    return 1.0 if reasoning.strip() and "\\n" not in end.strip() else 0.5


''',
    "boxed": '''def format_reward(prompt, completion, example):
    """1.0 for reasoning that ends in one box; 0.5 for a box anywhere."""
    if not answer_of(completion):
        return 0.0
    reasoning, _, behind = completion.partition("\\\\boxed{")
    return 1.0 if reasoning.strip() and not behind.partition("}")[2].strip(" .$\\n") else 0.5


''',
}

REFERENCE = '''def reference(example):
    """The right answer of a row."""
    return example[COLUMN].strip()


'''
REFERENCE_BEHIND_HASHES = '''def reference(example):
    """The right answer of a row: what stands behind ####."""
    return example[COLUMN].rpartition("####")[2].strip()


'''

CONTENT = {
    "none": """# The data has no column with right answers, so nothing can compare with one. What makes a
# completion good in your task comes here: a check of its own, or a judge. In the config it gets most of the weight.


""",
    "number": '''@reference@def number(text):
    """The number in a text, without $ and thousands commas; None when it is none."""
    try:
        return float(text.replace(",", "").replace("$", ""))
    except ValueError:
        return None


def correct_reward(prompt, completion, example):
    """1.0 for the right number, however it is written."""
    answer = answer_of(completion)
    value = None if answer is None else number(answer)
    return 1.0 if value is not None and value == number(reference(example)) else 0.0


''',
    "label": '''@reference@def correct_reward(prompt, completion, example):
    """1.0 for the right label, in any case of letters."""
    answer = answer_of(completion)
    return 1.0 if answer is not None and answer.casefold() == reference(example).casefold() else 0.0


''',
    "text": '''@reference@def words(text):
    """The words of a text and how often each occurs."""
    return Counter(re.findall(r"\\w+", text.casefold()))


def correct_reward(prompt, completion, example):
    """1.0 for the right text; for others half of the F1 of its words, so that being close counts, but not much."""
    answer = answer_of(completion)
    if answer is None:
        return 0.0
    if answer == reference(example):
        return 1.0
    found, wanted = words(answer), words(reference(example))
    matched = (found & wanted).total()
    return matched / (found.total() + wanted.total()) if matched else 0.0


''',
    "list": '''def correct_reward(prompt, completion, example):
    """F1 of the entries, whatever their order; 1.0 when both lists are empty."""
    try:
        answer = json.loads(answer_of(completion) or "")
    except (ValueError, RecursionError):
        return 0.0
    if not isinstance(answer, list):
        return 0.0
    # As text an entry can be counted, whatever it is.
    found = Counter(json.dumps(entry, sort_keys=True) for entry in answer)
    wanted = Counter(json.dumps(entry, sort_keys=True) for entry in ast.literal_eval(example[COLUMN]))
    if not found and not wanted:
        return 1.0
    return 2 * (found & wanted).total() / (found.total() + wanted.total())


''',
    "table": '''def correct_reward(prompt, completion, example):
    """Share of the keys, found or wanted, whose values are right; 1.0 when both tables are empty."""
    try:
        answer = json.loads(answer_of(completion) or "")
    except (ValueError, RecursionError):
        return 0.0
    if not isinstance(answer, dict):
        return 0.0
    wanted = ast.literal_eval(example[COLUMN])
    keys = {*answer, *wanted}
    missing = object()
    return sum(answer.get(key, missing) == wanted.get(key, missing) for key in keys) / len(keys) if keys else 1.0


''',
}

GOLD = '''RIGHT = @layout@


def gold(example):
    """A right completion for a row, for `reinforge rewards test`; None for a row without an answer. Here columns keep
    their types."""
    if example[COLUMN] is None:
        return None
    answer = @written@
    return RIGHT.format(reasoning="The question asks for one thing.", answer=answer)
'''

GOLD_OF_NONE = '''RIGHT = @layout@


def gold(example):
    """A completion in the right form, for `reinforge rewards test`. The data has no answers to put into it."""
    return RIGHT.format(reasoning="The question asks for one thing.", answer="An answer.")
'''
