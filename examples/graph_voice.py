"""When somebody speaks in a recording: silero-vad (MIT), over the machines of a swarm.

pip install 'shoal[graph]' && pip install --no-deps silero-vad    # only its model is used
python graph_voice.py --model    # its file: shoal serve FILE, on some machines
python graph_voice.py RECORDING.wav    # 16,000 samples a second, 16 bits, one channel
"""

import sys
import wave
from importlib.util import find_spec
from pathlib import Path

import numpy as np

import shoal

RATE = 16_000
STEP, CONTEXT = 512, 64  # samples that are new in each frame, and those before that it begins with
SPEECH = 0.5


def model() -> Path:
    package = find_spec("silero_vad")
    if package is None or package.origin is None:
        sys.exit("pip install --no-deps silero-vad")
    return Path(package.origin).with_name("data") / "silero_vad_16k_sequence.onnx"


def samples_of(recording: str) -> np.ndarray:
    with wave.open(recording, "rb") as opened:
        if (opened.getframerate(), opened.getsampwidth(), opened.getnchannels()) != (RATE, 2, 1):
            sys.exit(f"ffmpeg -i {recording} -ar {RATE} -ac 1 -c:a pcm_s16le converted.wav")
        return np.frombuffer(opened.readframes(opened.getnframes()), "<i2") / np.float32(1 << 15)


def main(swarm, recording):
    samples = samples_of(recording)
    count = -(-len(samples) // STEP)
    padded = np.zeros(CONTEXT + count * STEP, np.float32)
    padded[CONTEXT : CONTEXT + len(samples)] = samples
    frames = np.lib.stride_tricks.sliding_window_view(padded, CONTEXT + STEP)[::STEP]
    start = np.zeros((1, 1, 128), np.float32)
    found = swarm.run(str(model()), {"input": frames, "h": start, "c": start})["speech_probs"]
    # Where it begins and where it ends, between the frames.
    changes = np.flatnonzero(np.diff(np.concatenate([[0], found > SPEECH, [0]])))
    for begin, end in changes.reshape(-1, 2) * STEP / RATE:
        print(f"{begin:.2f} s to {end:.2f} s")
    print(f"{np.mean(found > SPEECH):.0%} of {len(samples) / RATE:.2f} s is speech")


if __name__ == "__main__":
    if sys.argv[1:] in ([], ["--model"]):
        sys.exit(str(model()))
    with shoal.connect() as connected:
        main(connected, sys.argv[1])
