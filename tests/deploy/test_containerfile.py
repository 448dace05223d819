"""The container file, checked without a container engine: what it says, and its own steps run in a copy of this root.

The copy is an overlay, so every path is the file's own and nothing of this machine changes. Only the installation of
Debian's Python is left out, which this machine must have.
"""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from samples.containerfile import command_of, environment_of, last, read_stages, steps_of
from samples.demo import folder_with_demo

from ltx_serve.cli.arguments import Arguments

ROOT = Path(__file__).parents[2]
STAGES = read_stages(ROOT / "deploy" / "Containerfile")
TARGETS = ("cpu", "gpu")
IN_A_BUNDLE = {"requirements.txt", "wheels/"}
TOKEN, PATH = "a-token-of-tests", "/usr/sbin:/usr/bin:/sbin:/bin"


def test_every_target_comes_from_debian_slim_and_copies_only_what_a_bundle_or_a_stage_has():
    for target in TARGETS:
        parent = target
        while parent in STAGES:
            parent = STAGES[parent].parent
        assert re.fullmatch(r"docker\.io/library/debian:\w+-slim", parent)
    for stage in STAGES.values():
        for word, rest in stage.steps:
            assert word != "ADD"
            if word == "COPY":
                *sources, _ = shlex.split(rest)
                other = sources[0].removeprefix("--from=") if sources[0].startswith("--from=") else None
                assert (other in STAGES) if other else set(sources) <= IN_A_BUNDLE, rest


def test_every_wheel_is_checked_and_no_index_is_asked():
    (install,) = (rest for word, rest in STAGES["environment"].steps if word == "RUN" and "pip-" in rest)
    assert {"--no-index", "--require-hashes"} <= set(shlex.split(install))


@pytest.mark.parametrize("target", TARGETS)
def test_the_server_runs_as_nobody_and_takes_its_token_from_a_file(target):
    steps = steps_of(STAGES, target)
    assert all(int(number) > 0 for number in last(steps, "USER").split(":"))
    words = command_of(last(steps, "ENTRYPOINT"))
    assert words[0] == "/opt/ltx/bin/ltx-serve" and "/bin/sh" not in words  # process 1 is the server
    options = {f"--{name.replace('_', '-')}" for name in Arguments.__dataclass_fields__}
    assert {word for word in words if word.startswith("--")} <= options
    assert not any("TOKEN" in name for name in environment_of(steps))
    assert json.loads(last(steps, "VOLUME")) == ["/data", "/engines"]


def test_only_the_gpu_target_asks_for_gpus():
    assert "NVIDIA_VISIBLE_DEVICES" in environment_of(steps_of(STAGES, "gpu"))
    assert "NVIDIA_VISIBLE_DEVICES" not in environment_of(steps_of(STAGES, "cpu"))


OVERLAY = """
set -eu
mkdir -p {place}/upper {place}/root
mount -t tmpfs tmpfs {place}/upper
mkdir {place}/upper/files {place}/upper/work
mount -t overlay overlay -o lowerdir=/,upperdir={place}/upper/files,workdir={place}/upper/work {place}/root
mount --rbind /dev {place}/root/dev
mount -t proc proc {place}/root/proc
ip link set lo up
"""
SERVE = """
mkdir -p {root}/run/secrets {root}/engines
printf %s {token} > {root}/run/secrets/ltx-token
mount --bind {engines} {root}/engines
env -i {variables} /usr/sbin/chroot --userspec={user} {root} {server} > {place}/out 2> {place}/err &
server=$!
for second in $(seq 60); do
    if env -i /usr/sbin/chroot --userspec={user} {root} {health} 2> /dev/null; then echo healthy; break; fi
    sleep 1
done
env -i /usr/sbin/chroot {root} /opt/ltx/bin/python -c {client} || true
kill -TERM $server
wait $server && echo ended 0 || echo ended $?
"""
CLIENT = """
import json, time
from urllib.error import HTTPError
from urllib.request import Request, urlopen

def ask(path, token, body=None):
    headers = {"Authorization": "Bearer " + token, "Content-Type": "application/json"}
    data = None if body is None else json.dumps(body).encode()
    return urlopen(Request("http://127.0.0.1:8000" + path, data, headers), timeout=60)

try:
    ask("/v1/videos", "wrong")
except HTTPError as error:
    print("wrong token", error.code)
video = json.load(ask("/v1/videos", TOKEN, {"prompt": "a fox", "size": "96x64", "num_frames": 9}))
end = time.monotonic() + 120
while video["status"] in ("queued", "in_progress") and time.monotonic() < end:
    time.sleep(0.5)
    video = json.load(ask("/v1/videos/" + video["id"], TOKEN))
print("video", video["status"], len(ask("/v1/videos/" + video["id"] + "/content", TOKEN).read()) > 1000)
"""


def script_of(target: str, context: Path, place: Path) -> str:
    """Returns a shell script that carries out the steps of a target, and then runs what the container runs."""
    root = place / "root"
    lines = [OVERLAY.format(place=place)]
    for stage in ("environment", "server", target):
        for word, rest in STAGES[stage].steps:
            if word == "RUN":
                lines.append(f"env -i PATH={PATH} /usr/sbin/chroot {root} {shlex.join(command_of(rest))}")
            elif word == "COPY" and not rest.startswith("--from="):  # stages share one root here
                source, destination = shlex.split(rest)
                inside = "." if source.endswith("/") else ""  # of a folder, its contents
                lines.append(f"mkdir -p {root}{destination} && cp -r {context}/{source}{inside} {root}{destination}")
    steps = steps_of(STAGES, target)
    health = command_of(last(steps, "HEALTHCHECK").partition(" CMD ")[2])
    variables = shlex.join(f"{name}={value}" for name, value in environment_of(steps).items())
    parts = {"server": command_of(last(steps, "ENTRYPOINT")), "health": health}
    parts["client"] = [f"TOKEN = {TOKEN!r}{CLIENT}"]
    joined = {name: shlex.join(words) for name, words in parts.items()}
    facts = {"engines": context / "engines", "user": last(steps, "USER"), "variables": variables, "token": TOKEN}
    lines.append(SERVE.format(root=root, place=place, **facts, **joined))
    return "\n".join(lines)


@pytest.mark.index
@pytest.mark.skipif(os.name == "nt" or shutil.which("ip") is None, reason="needs Linux and the package iproute2")
def test_its_steps_build_a_server_that_is_healthy_makes_a_video_and_hears_sigterm(tmp_path):
    if os.geteuid() != 0 or subprocess.run(["unshare", "--mount", "--net", "true"]).returncode != 0:
        pytest.skip("an overlay cannot be mounted - run this as root, where mount namespaces are permitted")
    code = "from ltx_export.cli import main; main()"
    words = ["bundle", "demo", tmp_path / "demo.tar", "--engines", folder_with_demo() / "engines"]
    words += ["--extra", "cpu", "--extra", "serve"]
    ended = subprocess.run([sys.executable, "-c", code, *map(str, words)], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    with tarfile.open(tmp_path / "demo.tar") as tar:
        tar.extractall(tmp_path / "there", filter="data")
    (context,) = (tmp_path / "there").iterdir()
    script, place = tmp_path / "script", tmp_path / "place"
    script.write_text(script_of("cpu", context, place))
    for folder in (tmp_path, *tmp_path.parents[:3]):
        folder.chmod(folder.stat().st_mode | 0o055)  # the server's user must reach the engines
    alone = ["unshare", "--mount", "--net", "--pid", "--fork", "--kill-child", "/bin/sh", str(script)]
    ended = subprocess.run(alone, capture_output=True, text=True, timeout=500)
    log = (place / "err").read_text() if (place / "err").exists() else ""
    told = ended.stdout.splitlines()
    assert told == ["healthy", "wrong token 401", "video completed True", "ended 0"], (told, ended.stderr, log)
