"""Faults around a run: where it is, what the machine has, who reads its output, and what images it is given."""

import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from experiments.training.workdir import load_config
from experiments.trials.injected import same
from jaxlocal.data import images

DIRECTORIES = ("run[1]", "run\\b", "r*n?", "ä {a,b}", "a 'b' \"c\"", "%41#~", "-run", ".hidden", "new\nline")
MACHINES: Mapping[str, Mapping[str, str]] = {
    "ASCII alone": {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": "ascii"},
    "nobody at home": {"HOME": "/proc/none", "JAXLOCAL_CACHE": ""},
    "no place for temporary files": {"TMPDIR": "/proc/none"},
    "a terminal without width": {"COLUMNS": "0", "LINES": "0", "TERM": "dumb"},
    "an unknown time zone": {"TZ": "Nowhere/Else"},
    "another working directory": {"PYTHONSAFEPATH": "1"},
}
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_SAME_SHAPE = (12, 10)


def _run(config: Path, workdir: Path, environment: Mapping[str, str], **how: Any) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "experiments.train", f"--config={config}", f"--workdir={workdir}"]
    return subprocess.Popen(command, env={**os.environ, **environment}, text=True, stderr=subprocess.PIPE, **how)


def around(whole: Path, workdir: Path, rng: random.Random) -> dict[str, Any]:
    """Trains the same run in directories of odd names, on odd machines, and under signals while nobody reads.

    Each of these runs has to end, when it is started again if need be, as the undisturbed one.
    """
    shutil.rmtree(workdir, ignore_errors=True)
    workdir.mkdir(parents=True)
    config = workdir / "config.py"
    fields = json.dumps(load_config(whole).to_dict())
    config.write_text(
        f"import json\nfrom ml_collections import ConfigDict\n\n\ndef get_config():\n"
        f"    return ConfigDict(json.loads({fields!r}))\n",
        encoding="utf-8",
    )
    outcomes: dict[str, str] = {}

    def judged(name: str, where: Path, ended: Callable[[], tuple[int, str]], codes: tuple[int, ...] = (0,)) -> None:
        code, errors = ended()
        traceback = "Traceback" in errors
        again = ""
        if code in codes and code:
            process = _run(config, where, {}, stdout=subprocess.DEVNULL)
            again = process.communicate()[1]
        good = code in codes and not traceback and "Traceback" not in again and same(whole, where)
        outcomes[name] = "equal" if good else f"code {code}: {errors[-300:]}{again[-300:]}"
        print(f"{name!r}: {outcomes[name]}", flush=True)

    def finished(where: Path, environment: Mapping[str, str]) -> tuple[int, str]:
        process = _run(config, where, environment, stdout=subprocess.DEVNULL)
        errors = process.communicate()[1]
        return process.returncode, errors

    for name in DIRECTORIES:
        where = workdir / name
        judged(f"directory {name}", where, lambda where=where: finished(where, {}))  # type: ignore[misc]
    for name, environment in MACHINES.items():
        where = workdir / name
        judged(name, where, lambda where=where, of=environment: finished(where, of))  # type: ignore[misc]
    for number in SIGNALS:
        where = workdir / number.name

        def struck(where: Path = where, number: signal.Signals = number) -> tuple[int, str]:
            process = _run(config, where, {}, stdout=subprocess.PIPE)
            assert process.stdout is not None
            for _ in range(rng.randrange(2, 40)):
                process.stdout.readline()
            process.stdout.close()
            process.send_signal(number)
            errors = process.communicate()[1]
            return process.returncode, errors

        codes = (0, 128 + number, 128 + signal.SIGPIPE)
        judged(f"{number.name}, and nobody reads", where, struck, codes)
    lost = sum(outcome != "equal" for outcome in outcomes.values())
    return {"injected": len(outcomes), "outcomes": outcomes, "lost": lost}


def _samples() -> list[bytes]:
    """An image of each kind."""
    rng = np.random.default_rng(0)
    colour = rng.integers(0, 256, (*_SAME_SHAPE, 3), np.uint8)
    rgb, grey = Image.fromarray(colour), Image.fromarray(colour[..., 0])
    turned = Image.Exif()
    turned[0x0112] = 6
    ways: list[tuple[Image.Image, str, dict[str, Any]]] = [
        (rgb, "PNG", {}),
        (grey, "PNG", {}),
        (rgb.quantize(16), "PNG", {"transparency": 0}),
        (rgb.convert("RGBA"), "PNG", {}),
        (Image.fromarray(colour[..., 0].astype(np.uint16) * 257), "PNG", {}),
        (rgb, "JPEG", {"exif": turned}),
        (rgb, "JPEG", {"progressive": True}),
        (rgb.convert("CMYK"), "JPEG", {}),
        (rgb, "GIF", {"save_all": True, "append_images": [rgb, rgb]}),
        (rgb, "BMP", {}),
        (rgb, "TIFF", {"compression": "tiff_lzw"}),
        (Image.fromarray(colour[..., 0] / np.float32(255)), "TIFF", {}),
        (rgb, "WEBP", {}),
        (rgb, "PPM", {}),
    ]
    found = []
    for image, kind, options in ways:
        file = io.BytesIO()
        image.save(file, kind, **options)
        found.append(file.getvalue())
    return found


def _mutated(content: bytes, rng: random.Random) -> bytes:
    """Bytes changed, inserted, taken out, and the end cut off."""
    damaged = bytearray(content)
    for _ in range(rng.randrange(1, 8)):
        place, how = rng.randrange(len(damaged)), rng.randrange(4)
        if how == 0:
            damaged[place] = rng.randrange(256)
        elif how == 1:
            damaged[place] ^= 1 << rng.randrange(8)
        elif how == 2:
            damaged[place:place] = rng.randbytes(rng.randrange(1, 9))
        elif len(damaged) > 20:
            del damaged[place : place + rng.randrange(1, 9)]
    return bytes(damaged[: rng.randrange(1, len(damaged) + 1)] if rng.random() < 0.3 else damaged)


def _read(content: bytes) -> str:
    """In a process of its own: what became of it."""
    try:
        seen = images.read(content, lambda width, height: (0, 0, width, height), (*_SAME_SHAPE, 3))
    except images.UnreadableError as error:
        return "refused" if "\n" not in str(error) and "object at 0x" not in str(error) else f"said {error}"
    except BaseException as error:
        return f"raised {type(error).__name__}: {error}"
    return "read" if seen.shape == (*_SAME_SHAPE, 3) else f"shape {seen.shape}"


def mutated(times: int, rng: random.Random) -> dict[str, Any]:
    """Reads images that are damaged at random: each is read, or refused in one line, within ten seconds."""
    samples, counts = _samples(), {"read": 0, "refused": 0}
    faults: list[str] = []
    pool = ProcessPoolExecutor(1, get_context("spawn"))
    for i in range(times):
        content = _mutated(samples[i % len(samples)], rng)
        try:
            said = pool.submit(_read, content).result(timeout=60 if i == 0 else 10)
        except (BrokenProcessPool, TimeoutError) as error:
            said = type(error).__name__
            pool.shutdown(wait=False, cancel_futures=True)
            pool = ProcessPoolExecutor(1, get_context("spawn"))
        if said in counts:
            counts[said] += 1
        else:
            faults.append(f"{said}: {content.hex()[:200]}")
    pool.shutdown()
    return {"injected": times, **counts, "faults": faults, "lost": len(faults)}
