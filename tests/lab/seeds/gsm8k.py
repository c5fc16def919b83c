"""The GSM8K rewards that the seed prints, written anew from its description, faults included (S2-011..026)."""

import re

TAGS = ("<reasoning>", "</reasoning>", "<answer>", "</answer>")


def extract_xml_answer(text):
    """The answer part. Fault: [-1] comes first, so this is what stands behind the closing tag."""
    behind = text.split("</answer>")[-1]
    return behind.split("<answer>")[0].strip()


def extract_hash_answer(text):
    """GSM8K's gold. Faults: ### leaves a # of ####, every dot goes, commas stay."""
    if "####" not in text:
        return ""
    return text.split("###")[-1].strip().replace(".", "").replace("$", "")


def correctness_reward(prompts, completions, answer, **columns):
    """2.0 when the extracted answer is the gold one."""
    found = [extract_xml_answer(completion[0]["content"]) for completion in completions]
    return [2.0 if own == gold else 0.0 for own, gold in zip(found, answer, strict=True)]


def int_reward(completions, **columns):
    """0.5 when the extracted answer is all digits."""
    return [0.5 if extract_xml_answer(completion[0]["content"]).isdigit() else 0.0 for completion in completions]


def strict_format_reward(completions, **columns):
    """0.5 for the exact layout. Fault: it wants a blank line and outer line breaks that nobody asks for."""
    pattern = r"^\n<reasoning>.*?</reasoning>\n\n<answer>.*?</answer>\n$"
    return [0.5 if re.match(pattern, completion[0]["content"], re.DOTALL) else 0.0 for completion in completions]


def soft_format_reward(completions, **columns):
    """0.5 for both blocks in order."""
    pattern = r"<reasoning>.*?</reasoning>.*?<answer>.*?</answer>"
    return [0.5 if re.search(pattern, completion[0]["content"], re.DOTALL) else 0.0 for completion in completions]


def xml_count_reward(completions, **columns):
    """0.125 for each tag that occurs once."""
    return [0.125 * sum(completion[0]["content"].count(tag) == 1 for tag in TAGS) for completion in completions]
