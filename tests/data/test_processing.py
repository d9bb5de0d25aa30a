"""data/processing.py against VideoLLaMA3's processors: transformers' image processor itself (it needs no torch), the others by committed arrays."""

import functools

import numpy as np
import pytest
from PIL import Image

from revision_jax.config import ConfigError, PrunerConfig, VisionConfig
from revision_jax.data import processing
from revision_jax.data.processing import Rules, Shape
from revision_jax.errors import UserError
from tests.golden import make_processing as golden

TRANSFORMERS, ORIGINAL = Rules("transformers"), Rules("original")
VISION = VisionConfig(patch=14)


@functools.cache
def arrays() -> dict:
    return golden.load()


# ---------------------------------------------------------------------------------------------------------------------------- size


def image_processor(**settings):
    from transformers.models.video_llama_3 import image_processing_pil_video_llama_3 as module

    return module.VideoLlama3ImageProcessorPil(**settings), module.smart_resize


def test_transformers_sizes_equal_its_own():
    _, smart_resize = image_processor()
    rng = np.random.default_rng(0)
    for _ in range(300):
        height, width = (int(x) for x in np.exp(rng.uniform(np.log(15), np.log(4000), 2)))
        frames, merge = int(rng.integers(1, 400)), int(rng.integers(1, 4))
        if max(height, width) > 200 * min(height, width):
            continue
        rules = Rules("transformers", image_merge=merge, video_merge=merge)
        image, video = (processing.target_sizes([shape], rules, 14)[0] for shape in (Shape("image", height, width), Shape("video", height, width, frames)))
        assert image == smart_resize(height, width, 14 * merge, *rules.image_pixels)
        assert video == smart_resize(height, width, 14 * merge, rules.video_pixels[0], rules.video_pixels[1] // frames)


def test_original_sizes_equal_its_own():
    sizes = iter(arrays()["original/sizes"].tolist())
    for sample in golden.shapes():
        shapes = [Shape(*row) for row in sample]
        ours = processing.target_sizes(shapes, ORIGINAL, 14)
        theirs = [tuple(next(sizes)) for _ in shapes]
        # Where the original lets a side become 0 (and fails), ours is one block.
        sides = [14 * ORIGINAL.merge(shape.kind) for shape in shapes]
        assert ours == [(max(h, side), max(w, side)) for (h, w), side in zip(theirs, sides, strict=True)]
    assert next(sizes, None) is None


def test_three_minutes_of_720p():
    """The two processors' best known difference."""
    film = Shape("video", 720, 1280, 180)
    assert processing.target_sizes([film], TRANSFORMERS, 14) == [(28, 56)]
    assert processing.target_sizes([film], ORIGINAL, 14) == [(196, 336)]
    assert processing.token_counts([film], ORIGINAL, 14) == [180 * 7 * 12]


def test_budget_of_the_original_is_shared():
    one = processing.token_counts([Shape("image", 4000, 4000)], ORIGINAL, 14)
    four = processing.token_counts([Shape("image", 4000, 4000)] * 4, ORIGINAL, 14)
    assert sum(four) <= 16384 and one[0] <= 16384 and four[0] < one[0] / 3


@pytest.mark.parametrize("rules", [TRANSFORMERS, ORIGINAL])
def test_bad_pictures_are_all_named(rules):
    with pytest.raises(UserError, match=r"image 0 is 10 x 3000 pixels.*; video 1 is empty"):
        processing.target_sizes([Shape("image", 10, 3000), Shape("video", 50, 50, 0)], rules, 14)


def test_bad_rules_name_the_field():
    with pytest.raises(ConfigError, match=r"rules\.fps: must be above 0"):
        Rules(fps=0.0)


# ------------------------------------------------------------------------------------------------------------------------- pixels


@pytest.mark.parametrize("merge", [1, 2])
@pytest.mark.parametrize(("height", "width"), [(100, 133), (56, 56), (30, 45), (400, 90)])
def test_images_equal_the_processor(merge, height, width):
    """Bit for bit up to the resized bytes, 1e-6 after normalisation."""
    processor, _ = image_processor(merge_size=merge, size={"shortest_edge": 56 * 56, "longest_edge": 28 * 28 * 40})
    image = golden.picture(height, width)[0]
    theirs = processor(images=[image], return_tensors="np")
    rules = Rules("transformers", image_merge=merge, image_pixels=(56 * 56, 28 * 28 * 40))
    size = processing.target_sizes([Shape("image", height, width)], rules, 14)[0]
    ours = processing.prepare(image[None], size, "image", rules, VISION)
    assert (1, *ours.grid) == tuple(theirs["image_grid_thw"][0])
    assert np.abs(ours.patches[0] - theirs["pixel_values"]).max() < 1e-6
    levels = [np.round((x * 0.5 + 0.5) * 255).astype(int) for x in (ours.patches[0], theirs["pixel_values"])]
    np.testing.assert_array_equal(*levels)
    assert np.isposinf(ours.change).all()


@pytest.mark.parametrize("name", golden.RESIZED)
def test_resized_videos_are_within_two_grey_levels(name):
    """PIL's bicubic here, torchvision's there: largest deviation 2 of 255 levels, and a hundredth in the mean."""
    height, width = golden.RESIZED[name]
    film = golden.picture(height, width, list(golden.RESIZED).index(name), frames=golden.FRAMES)
    rules = Rules("transformers", video_pixels=(golden.BOUNDS["shortest_edge"], golden.BOUNDS["longest_edge"]))
    size = processing.target_sizes([Shape("video", height, width, golden.FRAMES)], rules, 14)[0]
    ours = processing.prepare(film, size, "video", rules, VISION)
    assert [golden.FRAMES, *ours.grid] == arrays()[f"{name}/grid"][0].tolist()
    levels = np.round((ours.patches.reshape(-1, 588) * 0.5 + 0.5) * 255)
    deviation = np.abs(levels - arrays()[f"{name}/levels"])
    assert deviation.max() <= 2 and deviation.mean() < 0.02


@pytest.mark.parametrize(("height", "width"), [(190, 250), (256, 96), (480, 270)])
def test_videos_do_not_depend_on_the_version_of_pil(height, width):
    """Rows, rounded to bytes, then columns, as versions up to 12 did in one call."""
    film = golden.picture(height, width)
    rows = np.asarray(Image.fromarray(film[0]).resize((140, height), Image.Resampling.BICUBIC))
    expected = np.asarray(Image.fromarray(rows).resize((140, 112), Image.Resampling.BICUBIC))
    np.testing.assert_array_equal(processing.resize_video(film, 112, 140)[0], expected)
    assert processing.resize_video(film, height, width) is film


def test_videos_that_need_no_resizing_and_their_mask_are_equal():
    film = golden.still()
    ours = processing.prepare(film, (84, 112), "video", ORIGINAL, VISION)
    assert [8, *ours.grid] == arrays()["still/grid"][0].tolist()
    pixels = arrays()["still/pixels"]
    assert np.abs(ours.patches.reshape(-1, 588)[: len(pixels)] - pixels).max() < 1e-6
    mask = processing.kept_tokens(ours.change, PrunerConfig())
    np.testing.assert_array_equal(mask.reshape(-1), arrays()["still/mask"])
    assert mask[0].all() and mask[4].sum() == 1 and 0.2 < mask[1:].mean() < 0.8  # frame 4 equals frame 3: its first token stays


# ------------------------------------------------------------------------------------------------------------------------- frames


def test_transformers_samples_equal_its_own():
    starts = np.cumsum(arrays()["sampled/lengths"])[:-1]
    for (total, rate, fps), theirs in zip(golden.samplings(), np.split(arrays()["sampled/indices"], starts), strict=True):
        indices, times = processing.sample_frames(total, rate, Rules("transformers", fps=fps))
        np.testing.assert_array_equal(indices, theirs)
        np.testing.assert_array_equal(times, indices / rate)


def ffmpeg_fps(times: np.ndarray, duration: float, fps: float) -> list[tuple[float, int]]:
    """(seconds, number of the frame) that ffmpeg's filter `fps=<fps>:round=down` gives for frames at `times`, each `duration` long."""
    from fractions import Fraction

    import av

    base = Fraction(1, 90_000)
    graph = av.filter.Graph()
    source = graph.add_buffer(width=16, height=16, format="rgb24", time_base=base)
    rate, sink = graph.add("fps", f"fps={fps}:round=down"), graph.add("buffersink")
    source.link_to(rate)
    rate.link_to(sink)
    graph.configure()
    found = []
    for number, time in [*enumerate(times), (None, None)]:
        if number is None:
            source.push(None)
        else:
            frame = av.VideoFrame.from_ndarray(np.full((16, 16, 3), (number % 256, number // 256, 0), np.uint8), "rgb24")
            frame.pts, frame.time_base, frame.duration = round(time / base), base, round(duration / base)
            source.push(frame)
        while True:
            try:
                frame = graph.pull()
            except (av.error.BlockingIOError, av.error.EOFError):
                break
            red, green, _ = frame.to_ndarray()[0, 0]
            found.append((float(frame.pts * frame.time_base), int(red) + 256 * int(green)))
    return found


@pytest.mark.parametrize(
    ("rate", "count", "fps", "start"),
    [(25, 100, 1, 0), (25, 110, 1, 0), (30, 45, 2, 0), (0.5, 5, 1, 0), (25, 60, 1, 0.08), (12, 400, 3, 0.5), (25, 61, 5, 1.2)],
)
def test_original_samples_equal_ffmpegs_filter(rate, count, fps, start):
    times = start + np.arange(count) / rate
    theirs = ffmpeg_fps(times, 1 / rate, fps)
    indices, stamps = processing.sample_frames(count, rate, Rules(fps=fps, max_frames=1000), times)
    assert indices.tolist() == [number for _, number in theirs]
    np.testing.assert_allclose(stamps, times[0] + np.arange(len(theirs)) / fps)


def test_original_samples_uneven_frames_as_ffmpeg_does():
    times = np.cumsum(np.random.default_rng(0).choice([0.02, 0.04, 0.3, 1.7], 200))
    times -= times[0]
    theirs = ffmpeg_fps(times, 0.04, 1)
    indices, _ = processing.sample_frames(len(times), 25.0, ORIGINAL, times, times[-1] + 0.04)
    assert indices.tolist() == [number for _, number in theirs][:180]


def test_original_thins_long_videos_and_survives_short_ones():
    indices, times = processing.sample_frames(30 * 3600, 30.0, ORIGINAL)
    assert len(indices) == 180 and times[0] == 0 and times[-1] == 3599 and (np.diff(times) >= 20).all()
    np.testing.assert_array_equal(indices, 30 * times.astype(int) + 29)  # the last frame of its second
    indices, times = processing.sample_frames(5, 30.0, ORIGINAL)
    assert indices.tolist() == [0] and times.tolist() == [0]
    with pytest.raises(UserError, match="has 0 frames"):
        processing.sample_frames(0, 30.0, ORIGINAL)


# --------------------------------------------------------------------------------------------------------------------------- text


def test_texts_equal_the_processors():
    for rules in (TRANSFORMERS, ORIGINAL):
        assert [processing.timestamp_text(t, rules) for t in golden.STAMPS] == arrays()[f"text/{rules.name}"].tolist()
    mask = arrays()["still/mask"].reshape(8, -1)
    times = [30 * i / 29.97 for i in range(8)]
    assert processing.video_text(times, mask.sum(1).tolist(), TRANSFORMERS, golden.TOKEN) == str(arrays()["text/video"])


def test_timestamps_stay_true_for_nine_hours():
    rules = Rules(max_frames=40_000)
    _, times = processing.sample_frames(30 * 9 * 3600, 30.0, rules)
    assert processing.timestamp_text(times[-1], rules) == "Time 32399.0s:"


# --------------------------------------------------------------------------------------------------------------------------- files


def test_turned_pictures_follow_their_preset(tmp_path):
    image = Image.fromarray(golden.picture(20, 40)[0])
    exif = image.getexif()
    exif[0x0112] = 6  # turned by 90 degrees
    image.save(tmp_path / "a.png", exif=exif)
    assert processing.read_image(tmp_path / "a.png", TRANSFORMERS).shape == (40, 20, 3)
    assert processing.read_image(tmp_path / "a.png", ORIGINAL).shape == (20, 40, 3)
    (tmp_path / "b.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"b\.png: not readable as an image"):
        processing.read_image(tmp_path / "b.png", ORIGINAL)


def test_rules_of_a_checkpoint(tmp_path):
    assert processing.read_rules(tmp_path) == Rules()
    (tmp_path / "preprocessor_config.json").write_text('{"min_tokens": 16, "max_tokens": 10240, "image_mean": [0.5, 0.5, 0.5]}')
    assert processing.read_rules(tmp_path) == Rules("original", tokens=(16, 10240))
    (tmp_path / "preprocessor_config.json").write_text('{"size": {"shortest_edge": 3136, "longest_edge": 500000}, "merge_size": 1}')
    (tmp_path / "video_preprocessor_config.json").write_text('{"min_pixels": 1000, "max_pixels": 200000, "merge_size": 2, "max_frames": 90}')
    expected = Rules("transformers", image_pixels=(3136, 500000), video_pixels=(1000, 200000), max_frames=90)
    assert processing.read_rules(tmp_path) == expected
    (tmp_path / "preprocessor_config.json").write_text("[1]")
    with pytest.raises(UserError, match=r"preprocessor_config\.json: must hold a JSON object"):
        processing.read_rules(tmp_path)
