"""The shared fixtures hold what other tests lean on."""

from pathlib import Path


def test_tiny_models_load_and_their_tokenizer_returns_every_text(tiny_model: Path):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype="auto")
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert torch.get_num_threads() == 1
    text = "9 + 1  =  10\n ü 🙂"
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.decode(ids) == text
    rendered = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], tokenize=False, add_generation_prompt=True
    )
    assert rendered == "<|user|>Hi<|end|>\n<|assistant|>"
    assert tokenizer(rendered)["input_ids"].count(tokenizer.eos_token_id) == 1
    logits = model(torch.tensor([ids])).logits
    assert logits.std() > 0.5
