"""In which format a node holds its model: as asked, or as the swarm has it, or as suits this machine."""

from __future__ import annotations

from shoal.config import Settings
from shoal.executor.device.device import Device
from shoal.executor.kernels.built import kernels_built
from shoal.executor.load import holds_published
from shoal.models.store.local_model import LocalModel
from shoal.routing.formats import FormatChoice, choose_format
from shoal.swarm.announcement import format_of
from shoal.swarm.member import Member


def pick_format(model: LocalModel, settings: Settings, member: Member, device: Device) -> FormatChoice:
    """The format for a node of ``model`` on ``device``, by the settings and by what the swarm serves now."""
    member.directory.know([model.shape])  # who says another number of blocks for this digest lies
    serving = member.directory.serving(model.digest, member.now())
    return choose_format(
        settings.format,
        model.dtype,
        kernels=device.is_cpu and kernels_built(),
        accelerator=not device.is_cpu,
        published=settings.format in ("auto", "published") and holds_published(model),
        parallel=settings.parallel,
        served=[
            (format, a.served.span)
            for a in serving
            if a.served and a.peer != member.network.peer and (format := format_of(a.served)) is not None
        ],
    )
