from support.models import VOCAB_SIZE, tiny_tokenizer
from teacher_cache.tokenizer import describe_tokenizer


def test_tokenizer_fingerprint_follows_the_ids() -> None:
    tokenizer = tiny_tokenizer()
    before = describe_tokenizer(tokenizer)
    assert before.vocab_size == VOCAB_SIZE
    tokenizer.add_tokens(["<|another|>"])
    after = describe_tokenizer(tokenizer)
    assert after.vocab_size == VOCAB_SIZE + 1
    assert after.fingerprint != before.fingerprint
