"""VideoLLaMA3's four training stages: what is seen, what learns how fast, and the shapes that it is packed into.

Numbers are the paper's (arXiv 2501.13106) and those of the 2B scripts. A mixture's names stand for datasets that you build, one folder each (docs/training.md);
the paper's amounts, in millions of conversations, stand beside them. All weights are 1: an epoch sees everything once. `steps` is one epoch at about 128
conversations a step, VideoLLaMA3's global batch; a run says how many conversations your rows hold, and how many steps an epoch really has.
"""

from revision_jax.config import ConversationConfig, RowConfig, StageConfig

VISION, PROJECTOR, DECODER = "params/vision", "adapter/patch", "params/decoder"
CONVERSATIONS = 128  # of a step
SEQUENCE, VISUAL = 16384, 10240  # tokens of a conversation at most, and visual ones among them before pruning

# Rows by what their pictures are: none; up to 1,024 patches (448 x 448 pixels); up to 4,096 (896 x 896); one of any size; and what is longer than usual.
TEXT = RowConfig(SEQUENCE, 0, SEQUENCE, ())
IMAGES = (
    RowConfig(SEQUENCE, 12288, 6144, ((12, 1024),)), RowConfig(SEQUENCE, 15360, 4096, ((4, 4096),)), RowConfig(12288, 10240, 2048, ((1, 10240),)),
    RowConfig(SEQUENCE, VISUAL, 8192, ((1, 10240),)),
)  # fmt: skip
# With merged patches 10,240 tokens are 40,960 patches: 180 small frames, a few large ones, or one picture.
VIDEOS = (RowConfig(12288, 11264, 2048, ((45, 1024),)), RowConfig(12288, 11264, 2048, ((9, 5120),)), RowConfig(SEQUENCE, VISUAL, 8192, ((4, 10240), (2, 1024))))
MERGED = (RowConfig(SEQUENCE, 12288, 6144, ((48, 1024),)), RowConfig(SEQUENCE, 12288, 6144, ((12, 4096),)))
LARGEST = RowConfig(SEQUENCE, VISUAL, 8192, ((1, 40960),))


def stage(name: str, amounts: dict[str, float], rows: tuple[RowConfig, ...], rates: dict[str, float], batch: int = 16, **asked) -> StageConfig:
    """A stage by its datasets (millions of conversations) and its parts' learning rates; `batch` counts packed rows."""
    mixture = tuple((dataset, 1.0) for dataset in amounts)
    return StageConfig(
        name=name, task="conversation", level="patch", train=tuple(rates), learning_rate=max(rates.values()),
        rates=tuple(rates.items()) if len(set(rates.values())) > 1 else (), steps=round(sum(amounts.values()) * 1e6 / CONVERSATIONS), batch=batch,
        warmup=0.03, weight_decay=0.0, clip=1.0, conversation=ConversationConfig(mixture=mixture, rows=rows, visual=VISUAL, **asked),
    )  # fmt: skip


def stages() -> tuple[StageConfig, ...]:
    """Vision encoder adaptation, vision-language alignment, multi-task fine-tuning, video-centric fine-tuning."""
    everything = {VISION: 2e-6, PROJECTOR: 1e-5, DECODER: 1e-5}
    seen = {"scenes": 11.84, "scene_text": 0.93, "documents": 2.80}
    aligned = {"scenes_detailed": 12.56, "scene_text_detailed": 4.69, "documents_detailed": 2.68, "charts": 0.04, "regions": 1.00, "text": 6.25}
    tasks = {
        "general": 9.87, "document_questions": 1.31, "chart_questions": 1.00, "ocr": 0.83, "grounding": 0.50, "several_images": 0.41, "text_tasks": 2.21,
        "videos": 2.92,
    }  # fmt: skip
    films = {"videos_general": 3.03, "streams": 0.036, "moments": 0.21, "images_replay": 0.88, "text_replay": 1.56}
    return (
        stage("vision", seen, (TEXT, *IMAGES), {VISION: 1e-5, PROJECTOR: 1e-3}),
        stage("alignment", aligned, (TEXT, *IMAGES), everything),
        stage("multitask", tasks, (TEXT, *IMAGES, *VIDEOS), everything, pruning=True),
        stage("video", films, (TEXT, *MERGED, *VIDEOS, LARGEST), everything, image_merge=2, pruning=True, stream_ends=True),
    )
