"""What a node counts, as Prometheus reads it."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families

from shoal.metrics.meters import Metrics, Reading


def read(metrics: Metrics) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """Every sample by its name and labels, as Prometheus' own parser reads them."""
    families = text_string_to_metric_families(metrics.text().decode())
    return {(s.name, tuple(sorted(s.labels.items()))): s.value for family in families for s in family.samples}


def test_events_are_counted_where_they_happen() -> None:
    metrics = Metrics()
    metrics.step("decode", 1, 5_000, 1_000)
    metrics.step("prefill", 40, 90_000, 0)
    metrics.step("verify", 5, 8_000, 0)
    metrics.refusals.labels("busy").inc()
    seen = read(metrics)
    assert seen["shoal_steps_total", (("phase", "decode"),)] == 1
    assert seen["shoal_tokens_total", (("phase", "prefill"),)] == 40
    assert seen["shoal_tokens_total", (("phase", "verify"),)] == 5
    assert seen["shoal_refusals_total", (("code", "busy"),)] == 1
    assert seen["shoal_step_seconds_sum", (("part", "compute"), ("phase", "decode"))] == 0.005
    assert seen["shoal_step_seconds_sum", (("part", "waiting"), ("phase", "decode"))] == 0.001


def test_what_merely_is_is_read_when_asked_for() -> None:
    metrics, sessions = Metrics(), [3]
    metrics.read_from(
        lambda: (
            Reading("shoal_sessions", "Open.", sessions[0]),
            Reading("shoal_bytes", "Sent.", 7, {"way": "in"}, "counter"),
            Reading("shoal_bytes", "Sent.", 8, {"way": "out"}, "counter"),
        )
    )
    assert read(metrics)["shoal_sessions", ()] == 3
    sessions[0] = 4
    seen = read(metrics)
    assert seen["shoal_sessions", ()] == 4
    assert (seen["shoal_bytes_total", (("way", "in"),)], seen["shoal_bytes_total", (("way", "out"),)]) == (
        7,
        8,
    )


def test_a_peers_text_cannot_write_lines_of_its_own() -> None:
    metrics = Metrics()
    name = 'fish"} 1\nshoal_sessions 99\n\\'
    metrics.read_from(lambda: [Reading("shoal_coverage", "Peers.", 1, {"model": name})])
    seen = read(metrics)
    assert seen["shoal_coverage", (("model", name),)] == 1
    assert ("shoal_sessions", ()) not in seen


def test_two_nodes_in_one_process_count_apart() -> None:
    one, other = Metrics(), Metrics()
    one.step("decode", 1, 1, 1)
    assert ("shoal_steps_total", (("phase", "decode"),)) not in read(other)


def test_memory_and_open_files_of_the_process_are_among_them() -> None:
    seen = read(Metrics())
    assert seen["shoal_process_resident_memory_bytes", ()] > 1 << 20
    assert seen["shoal_process_open_fds", ()] > 2
