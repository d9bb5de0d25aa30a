"""Annotated films without files: a corpus of `memory_store.MemoryStore`s, whose frames say where they come from."""

from revision_jax.data.asking import TrainQuestion
from revision_jax.data.corpus import Corpus, TrainVideo
from tests.data.memory_store import MemoryStore, store_path

SECONDS = 1500.0


def listed(films=4, questions=5, seconds=SECONDS, rate=1.0):
    """Each film has so many questions about 12 s; the last of them has two moments, and there is one that is not answered."""

    def asked(film):
        starts = [100.0 * number + 7 * film for number in range(questions - 1)]
        one = [TrainQuestion(f"event {number} of film {film}", ((start, start + 12.0),)) for number, start in enumerate(starts)]
        two = TrainQuestion(f"twice in film {film}", ((900.0, 905.0), (1200.0, 1230.0)), "several")
        return (*one, two, TrainQuestion(f"never in film {film}", (), "absent"))

    videos = [TrainVideo(f"film {film}", seconds, store_path(film, seconds, rate), None, asked(film)) for film in range(films)]
    return Corpus(videos, open_store=MemoryStore)
