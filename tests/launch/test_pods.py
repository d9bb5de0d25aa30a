"""What is shipped for clusters, as far as it can be checked without one: fields of the manifest, syntax of the scripts, and the commands inside."""

import re
import shlex
import subprocess
from pathlib import Path

import pytest

from launch.train import load_config, parse
from revision_jax.config import override

yaml = pytest.importorskip("yaml")
LAUNCH = Path(__file__).parents[2] / "launch"
JOBSET, QUEUED, SBATCH = LAUNCH / "tpu_pod" / "jobset.yaml", LAUNCH / "tpu_pod" / "queued_resources.sh", LAUNCH / "slurm" / "train.sbatch"

# Of the public APIs (jobset.sigs.k8s.io v1alpha2; kubernetes batch/v1 JobSpec, core/v1 PodSpec): field -> (type, required), or nested fields. What is not
# listed is refused, as the API servers' strict validation does; lists hold one kind of item.
QUANTITY = {"google.com/tpu": (int, True)}
CONTAINER = {
    "name": (str, True), "image": (str, True), "command": (list, False), "ports": [{"containerPort": (int, True)}],
    "env": [{"name": (str, True), "value": (str, False)}], "resources": {"requests": QUANTITY, "limits": QUANTITY},
    "volumeMounts": [{"name": (str, True), "mountPath": (str, True)}],
}  # fmt: skip
POD = {
    "restartPolicy": (str, True), "terminationGracePeriodSeconds": (int, False), "nodeSelector": (dict, True), "containers": [CONTAINER],
    "volumes": [{"name": (str, True), "persistentVolumeClaim": {"claimName": (str, True)}}],
}  # fmt: skip
JOB = {"parallelism": (int, True), "completions": (int, True), "backoffLimit": (int, False), "template": {"spec": POD}}
SCHEMA = {
    "apiVersion": (str, True), "kind": (str, True), "metadata": {"name": (str, True), "annotations": (dict, False)},
    "spec": {"failurePolicy": {"maxRestarts": (int, False)}, "replicatedJobs": [{"name": (str, True), "replicas": (int, True), "template": {"spec": JOB}}]},
}  # fmt: skip


def check(value, schema, where=""):
    """Everything that is wrong with a manifest."""
    if isinstance(schema, list):
        if not isinstance(value, list) or not value:
            return [f"{where}: not a list of items"]
        return [wrong for i, item in enumerate(value) for wrong in check(item, schema[0], f"{where}[{i}]")]
    if isinstance(schema, tuple):
        return [] if isinstance(value, schema[0]) and not isinstance(value, bool) else [f"{where}: not a {schema[0].__name__}"]
    if not isinstance(value, dict):
        return [f"{where}: not a mapping"]
    wrong = [f"{where}.{name}: unknown field" for name in value if name not in schema]
    wrong += [f"{where}.{name}: missing" for name, kind in schema.items() if name not in value and isinstance(kind, tuple) and kind[1]]
    return wrong + [item for name in value if name in schema for item in check(value[name], schema[name], f"{where}.{name}")]


@pytest.fixture
def manifest():
    return yaml.safe_load(JOBSET.read_text())


def test_the_manifest_is_a_jobset(manifest):
    assert check(manifest, SCHEMA) == []
    assert (manifest["apiVersion"], manifest["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    (job,) = manifest["spec"]["replicatedJobs"]
    spec = job["template"]["spec"]
    pod = spec["template"]["spec"]
    (container,) = pod["containers"]
    assert pod["restartPolicy"] in ("Never", "OnFailure")  # a Job's pods know no other
    for name in (manifest["metadata"]["name"], job["name"], container["name"]):
        assert re.fullmatch(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?", name)
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
    # A pod on every host, with all of its chips; and all chips of the slice.
    chips = container["resources"]["limits"]["google.com/tpu"]
    rows, columns = map(int, pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"].split("x"))
    assert container["resources"]["requests"] == container["resources"]["limits"]
    assert spec["parallelism"] == spec["completions"] and chips * spec["parallelism"] == rows * columns


def test_a_manifest_that_is_wrong_is_told(manifest):
    job = manifest["spec"]["replicatedJobs"][0]["template"]["spec"]
    job["parallelism"] = "4"
    del job["template"]["spec"]["restartPolicy"]
    job["template"]["spec"]["containers"][0]["imagee"] = "x"
    told = check(manifest, SCHEMA)
    assert len(told) == 3 and told[0].endswith(".parallelism: not a int") and told[1].endswith(".restartPolicy: missing") and "imagee: unknown" in told[2]


def command(path):
    """The words of the training command inside a file, shell variables as plain text."""
    if path.suffix == ".yaml":
        spec = yaml.safe_load(path.read_text())["spec"]["replicatedJobs"][0]["template"]["spec"]
        return spec["template"]["spec"]["containers"][0]["command"]
    text = path.read_text().replace("\\\n", " ")
    (line,) = re.findall(r"\S*python -m launch\.train.*", text)
    return shlex.split(line.rstrip('"') if line.count('"') % 2 else line)


@pytest.mark.parametrize("path", [JOBSET, QUEUED, SBATCH], ids=lambda path: path.name)
def test_the_command_inside_is_one_that_train_takes(path):
    words = command(path)
    assert words[1:3] == ["-m", "launch.train"]
    options = parse(words[3:])
    config = override(load_config(options.config), options.overrides)
    assert options.stages in [stage.name for stage in config.train.stages]
    assert options.workdir and options.init and config.mesh.rules == "fsdp" and config.mesh.fsdp == -1
    assert (options.coordinator == "auto") == (path is QUEUED)


@pytest.mark.parametrize("path", [QUEUED, SBATCH], ids=lambda path: path.name)
def test_the_scripts_are_sound_bash(path):
    assert subprocess.run(["bash", "-n", path], capture_output=True, text=True).stderr == ""


def test_slurm_starts_a_process_for_each_gpu():
    options = dict(re.findall(r"^#SBATCH --([a-z-]+)=(\S+)", SBATCH.read_text(), re.M))
    assert options["ntasks-per-node"] == options["gpus-per-node"] and options["signal"].startswith("TERM@")


@pytest.mark.parametrize("folder", ["tpu_pod", "slurm"])
def test_a_page_speaks_of_every_file_beside_it(folder):
    page = (LAUNCH / folder / "README.md").read_text()
    for file in (LAUNCH / folder).iterdir():
        assert file.name == "README.md" or file.name in page, file
