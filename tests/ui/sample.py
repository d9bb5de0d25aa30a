"""A result as `launch.ground --json` writes it, for the tests of what draws it."""


def window(start, end, score, kept):
    return {"start_s": start, "end_s": end, "score": score, "kept": kept}


def moment(start, end, confidence, accepted):
    return {"start_s": start, "end_s": end, "start": "", "end": "", "confidence": confidence, "accepted": accepted}


def result(path="film.mp4", duration=3600.0, query="a red ring turns green"):
    levels = [
        {
            "name": "sparse", "kind": "sparse", "count": 3,
            "windows": [window(0.0, 60.0, 0.1, False), window(700.0, 760.0, 0.9, True), window(730.0, 790.0, 0.6, True)],
        },
        {"name": "dense", "kind": "dense", "count": 1, "windows": [window(690.0, 810.0, 0.8, True)]},
    ]
    return {
        "video": {"path": path, "duration_s": duration, "fps": 5.0},
        "results": [
            {
                "query": query, "present": True, "levels": levels, "seconds": {"search": 0.5},
                "moments": [moment(740.0, 752.0, 0.93, True), moment(20.0, 30.0, 0.2, False)],
            },
            {"query": "nothing", "present": False, "moments": [], "levels": [], "seconds": {}},
        ],
    }
