"""What each preset's stage trains on, token by token, with a tokenizer that behaves as LLaMA's: the prompt, the answer, and that the answer alone is learnt.

The tokens are written out here, or made in one piece from the whole conversation, as Vicuna's template is tokenised by the original: `before`, the video's
place, and all that follows as one text.
"""

import importlib

import numpy as np
import pytest

from revision_jax.config import PromptConfig
from revision_jax.data.prompts import answer_text, before_ids, encode_answer, encode_question
from revision_jax.data.tokenizer import Tokenizer
from tests.real_tokenizers import sentencepiece_like

TOKENIZER = Tokenizer(sentencepiece_like())
SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, and polite answers to the user's questions."
)
QUERY = "A red ring turns green."


def stage_prompt(name: str, stage: str) -> PromptConfig:
    config = importlib.import_module(f"configs.{name}").get_config()
    found = next(one for one in config.train.stages if one.name == stage)
    return found.prompt or config.grounding.level(found.level).prompt


def tokens(prompt: PromptConfig, answer, presence: bool = False) -> tuple[list[str], list[str], list[str]]:
    """(before the video, behind it, the answer) of a training example, as tokens; pads are left out."""
    after, after_mask = encode_question(TOKENIZER, prompt, QUERY, 128, presence)
    ids, mask = encode_answer(TOKENIZER, prompt, answer, 16)
    return tuple([TOKENIZER.token(i) for i in part] for part in (before_ids(TOKENIZER, prompt), after[after_mask], ids[mask]))


def said(question: str, answer: str) -> str:
    """A whole conversation as the original has it."""
    return f"{SYSTEM} USER: <video>\n{question} ASSISTANT: {answer}</s>"


DENSE, VIDEO = (f"During which {seen} can we see a red ring turns green?" for seen in ("frames", "video"))
PRESENCE = "Does a red ring turns green happen in the video? Write your answer either yes or no."
# Stage of a preset, what is answered, and the conversation. Stage 2 asks as 1-A does; of windows the number behind the last is named.
CONVERSATIONS = [
    ("revisionllm_7b_mad", "1a", (5, 123), said(DENSE, "From 05 to 123.")),
    ("revisionllm_7b_mad", "1a", None, said(DENSE, "Not Present")),
    ("revisionllm_7b_mad", "1b", True, said(PRESENCE, "yes")),
    ("revisionllm_7b_mad", "1b", False, said(PRESENCE, "no")),
    ("revisionllm_7b_mad", "2", (5, 7), said(DENSE, "From 5 to 8.")),
    ("revisionllm_7b_mad", "2-33", (0, 2), said(DENSE, "From 0 to 3.")),
    ("revisionllm_7b_vidchapters", "1a", (5, 249), said(DENSE, "From 05 to 249.")),
    ("revisionllm_7b_vidchapters", "2", (97, 99), said(DENSE, "From 97 to 100.")),
    ("revisionllm_7b_msrvtt", "retrieval", (42, 42), said(VIDEO, "In video 42")),
    ("revisionllm_7b_msrvtt", "retrieval", None, said(VIDEO, "Not Present")),
]


@pytest.mark.parametrize(("name", "stage", "answer", "conversation"), CONVERSATIONS, ids=[f"{c[0]}-{c[1]}-{c[2]}" for c in CONVERSATIONS])
def test_the_tokens_are_those_of_the_whole_conversation(name, stage, answer, conversation):
    """What stands behind the video is one text to the original; here question and answer are tokenised apart, and must come out the same."""
    before, after, said = tokens(stage_prompt(name, stage), answer, presence=stage == "1b")
    first, second = conversation.removesuffix("</s>").split("<video>")
    whole = lambda text: [TOKENIZER.token(i) for i in TOKENIZER.encode(text)]
    assert before == ["<s>", *whole(first)]
    assert after + said == [*whole(second), "</s>"]
    # The loss is on the answer and the end token alone, as the original's mask has it: everything up to "ASSISTANT:" is context.
    question = second[: second.index("ASSISTANT:") + len("ASSISTANT:")]
    assert after == whole(question) and said == [*whole(second)[len(after) :], "</s>"]


def test_golden_tokens_of_a_dense_answer():
    before, after, said = tokens(stage_prompt("revisionllm_7b_mad", "1a"), (5, 123))
    assert before[:4] == ["<s>", "▁A", "▁chat", "▁between"] and before[-3:] == ["▁USER", ":", "▁"]
    assert after[:7] == ["▁", "<0x0A>", "Duri", "ng", "▁which", "▁frames", "▁can"]
    assert after[-2:] == ["▁ASSISTANT", ":"]
    assert said == ["▁From", "▁", "0", "5", "▁to", "▁", "1", "2", "3", ".", "</s>"]
    assert tokens(stage_prompt("revisionllm_7b_mad", "1a"), None)[2] == ["▁Not", "▁Present", "</s>"]


def test_golden_text_of_the_methods_own_words():
    """No system line, a period behind "Not Present", as the method is told."""
    prompt = stage_prompt("revisionllm_7b_hour", "1a")
    before, after, said = tokens(prompt, (120, 240))
    assert before == ["<s>"]
    assert "".join(after).replace("▁", " ") == "  when can we see the a red ring turns green happening?"  # LLaMA's own blank, and the text's
    assert said == ["▁From", "▁", "1", "2", "0", "▁to", "▁", "2", "4", "0", ".", "</s>"]
    assert tokens(prompt, None)[2] == ["▁Not", "▁Present", ".", "</s>"]
    assert answer_text(prompt, None) == "Not Present." and answer_text(stage_prompt("revisionllm_7b_mad", "1a"), None) == "Not Present"


def test_the_loss_counts_the_answers_tokens_and_no_others():
    """`training.losses.answer_loss` over an answer's ids and mask: what lies behind the end token has no say, whatever stands there."""
    import jax
    import jax.numpy as jnp

    from revision_jax.training.losses import answer_loss

    ids, mask = encode_answer(TOKENIZER, stage_prompt("revisionllm_7b_mad", "1a"), (5, 123), 16)
    assert mask.sum() == 11 and ids[10] == TOKENIZER.eos
    logits = jax.random.normal(jax.random.key(0), (1, 16, TOKENIZER.vocab_size))
    garbage = logits.at[:, 11:].set(1e4)
    other = jnp.asarray(np.where(mask, ids, 7))
    loss = lambda logits, ids: answer_loss(logits, jnp.asarray(ids)[None], jnp.asarray(mask)[None], jnp.ones(1))
    one, two = loss(logits, ids), loss(garbage, other)
    assert one[0] == two[0] and one[1] == two[1]
    by_hand = -np.mean([jax.nn.log_softmax(logits[0, row])[ids[row]] for row in range(11)])
    assert float(one[0]) == pytest.approx(float(by_hand), rel=1e-5)
