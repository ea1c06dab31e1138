"""Figures by their matplotlib artists: curves, axes, and notes on missing data. Equal data give equal files."""

import io
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.testing.compare import compare_images
from recorded import record

from lmconsole.report.draw import ImageFormat, draw_figure, encode_figure, in_one_column
from lmconsole.report.draw_style import displayable, log_ticks, shorten
from lmconsole.report.figure_content import LARGEST_PPL, FigureSpec, time_unit
from lmconsole.report.figures import figure_specs
from lmconsole.report.notation import notation
from lmconsole.report.selection import choose_group
from lmconsole.runs.store import Store

pytestmark = pytest.mark.slow

NAN, INF = float("nan"), float("inf")


def spec(root: Path, number: int, **options: Any) -> FigureSpec:
    found = figure_specs(choose_group(Store(root / "runs").runs()), **options)
    assert [each.number for each in found] == list(range(12))
    return found[number]


def figure(root: Path, number: int, **options: Any) -> Figure:
    content = spec(root, number, **options).content
    assert content is not None
    return draw_figure(content)


def caption(root: Path, number: int) -> str:
    return spec(root, number).caption


def legend(drawn: Figure) -> list[str]:
    return [text.get_text() for each in drawn.legends for text in each.get_texts()]


def lines(axes: Axes) -> list[tuple[list[float], list[float]]]:
    return [(np.asarray(line.get_xdata()).tolist(), np.asarray(line.get_ydata()).tolist()) for line in axes.get_lines()]


def twelve(root: Path, **more: Any) -> None:
    """Record all twelve experiments: GPT-1 better than LSTM, Adam better than SGD, deeper a little better."""
    kinds = [("lstm", 1, each) for each in ("adam", "adamw", "sgd", "momentum")]
    kinds += [("gpt1", 1, each) for each in ("adam", "adamw", "sgd", "momentum")]
    kinds += [(model, layers, "adamw") for model in ("lstm", "gpt1") for layers in (2, 4)]
    for number, (model, layers, optimizer) in enumerate(kinds, 1):
        best = (4.0 if model == "gpt1" else 5.0) + (1.5 if optimizer in ("sgd", "momentum") else 0.0) - 0.1 * layers
        record(
            root, number, model, [(best + 1.0, best + 0.8), (best, best + 0.2)],
            optimizer=optimizer, layers=layers, **more,
        )  # fmt: skip


def test_every_experiment_has_its_panel_and_every_panel_its_letter(tmp_path: Path) -> None:
    twelve(tmp_path)
    titles = [[axes.get_title(loc="left") for axes in figure(tmp_path, number).axes] for number in range(1, 9)]
    assert titles[0] == ["(a) Adam (1)", "(b) AdamW (2)", "(c) SGD (3)", "(d) Momentum (4)"]
    assert titles[1] == ["(a) Adam (5)", "(b) AdamW (6)", "(c) SGD (7)", "(d) Momentum (8)"]
    assert titles[2] == ["(a) 2 layers, AdamW (9)", "(b) 4 layers, AdamW (10)"]
    assert titles[3] == ["(a) 2 layers, AdamW (11)", "(b) 4 layers, AdamW (12)"]
    assert titles[4:] == titles[:4]


def test_curves_are_the_perplexities_of_the_log_over_epochs_and_time(tmp_path: Path) -> None:
    record(tmp_path, 1, "lstm", [(6.0, 5.5), (5.0, 4.5), (4.0, 4.6)], seconds=100.0)
    over_epochs, over_time = figure(tmp_path, 1).axes[0], figure(tmp_path, 5).axes[0]
    train, _, _, valid, best, _ = lines(over_epochs)
    assert best[0] == [2.0]
    assert best[1] == pytest.approx([math.exp(4.5)])
    assert train[0] == valid[0] == [1.0, 2.0, 3.0]
    assert train[1] == pytest.approx([math.exp(loss) for loss in (6.0, 5.0, 4.0)])
    assert valid[1] == pytest.approx([math.exp(loss) for loss in (5.5, 4.5, 4.6)])
    assert lines(over_time)[0][0] == pytest.approx([100 / 60, 200 / 60, 300 / 60])
    drawn = figure(tmp_path, 5)
    assert drawn.axes[0].get_xlabel() == "Training time (min)"
    assert figure(tmp_path, 1).axes[0].get_xlabel() == "Epoch"
    assert {axes.get_yscale() for axes in drawn.axes} == {"linear"}
    assert drawn.axes[0].get_ylabel() == "Perplexity"
    assert legend(drawn) == ["Train", "Validation", "best epoch"]


def test_evaluations_within_epochs_are_points_of_the_validation_curve(tmp_path: Path) -> None:
    losses, within = [(6.0, 5.5), (5.0, 4.5)], [(7.0, 6.0, 5.8), (5.2, 5.0, 4.6)]
    more: dict[str, Any] = {"seconds": 8.0, "evaluate_every_steps": 1, "within": within}
    record(tmp_path, 1, "lstm", losses, **more)
    record(tmp_path, 2, "lstm", losses, optimizer="adamw")
    curves = lines(figure(tmp_path, 1).axes[0])
    assert [1.0, 2.0] in [xs for xs, _ in curves], "train"
    (valid,) = [ys for xs, ys in curves if xs == [0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0]]
    assert valid == pytest.approx([math.exp(loss) for loss in (7.0, 6.0, 5.8, 5.5, 5.2, 5.0, 4.6, 4.5)])
    assert figure(tmp_path, 1).axes[0].get_xlim() == (0.0, 2.5)
    assert pytest.approx([2 * x for x in range(1, 9)]) in [xs for xs, _ in lines(figure(tmp_path, 5).axes[0])]
    (text,) = [
        each.text
        for each in notation(choose_group(Store(tmp_path / "runs").runs()), exploratory=True)
        if each.lead == "Perplexity."
    ]
    assert "evaluated at the ends of epochs, and within them every step in 1." in text


def test_panels_share_their_axis_where_it_suits_all_and_the_legend_is_outside_the_data(tmp_path: Path) -> None:
    twelve(tmp_path)
    drawn, deep = figure(tmp_path, 5), figure(tmp_path, 7)
    adam, adamw, sgd, momentum = (axes.get_ylim() for axes in drawn.axes)
    assert (adam, sgd) == (adamw, momentum)
    assert sgd[0] > adam[1], "each fills its own panel"
    assert caption(tmp_path, 5).endswith("Logarithmic axes, one for each panel.")
    assert all(low < math.exp(5.7) < high for low, high in (adam, adamw)), "both of two epochs, for validation"
    assert len({axes.get_ylim() for axes in deep.axes}) == 1
    assert len({axes.get_xlim() for axes in drawn.axes}) == 1
    drawn.canvas.draw()
    box = drawn.legends[0].get_window_extent()
    assert not any(box.overlaps(axes.get_window_extent()) for axes in drawn.axes)


def test_a_rise_by_a_few_percent_can_be_seen(tmp_path: Path) -> None:
    """From 146 to 157, after epochs in the thousands and with a train perplexity of 40."""
    valid = [2000.0, 700.0, 300.0, 180.0, 150.0, 146.0, 149.0, 152.0, 155.0, 157.0]
    train = [5000.0, 800.0, 300.0, 150.0, 110.0, 85.0, 70.0, 58.0, 48.0, 40.0]
    record(tmp_path, 5, "gpt1", [(math.log(a), math.log(b)) for a, b in zip(train, valid, strict=True)])
    (axes,) = figure(tmp_path, 2).axes
    low, high = axes.get_ylim()
    assert (157.0 - 146.0) / (high - low) > 0.04
    assert low < 40.0
    (overview, _) = figure(tmp_path, 0).axes
    low, high = overview.get_ylim()
    assert (157.0 - 146.0) / (high - low) > 0.08


def test_a_run_that_explodes_hides_no_minimum_and_a_flat_one_looks_flat(tmp_path: Path) -> None:
    record(tmp_path, 1, "lstm", [(5.0, 5.0), (4.9, 4.9), (12.0, 12.0)])
    record(tmp_path, 3, "lstm", [(7.6, 7.6), (7.5999, 7.5999)], optimizer="sgd")
    exploding, flat = (axes.get_ylim() for axes in figure(tmp_path, 1).axes)
    assert exploding[1] < 5 * math.exp(4.9)
    assert flat[1] / flat[0] > 1.04


def test_the_overview_shows_the_best_experiment_of_each_architecture_with_every_seed(tmp_path: Path) -> None:
    twelve(tmp_path, seed=1)
    twelve(tmp_path, seed=2)
    drawn = figure(tmp_path, 0)
    assert legend(drawn) == ["GPT-1 4L AdamW (12)", "LSTM 4L AdamW (10)", "mean of the seeds", "best epoch"]
    assert [axes.get_xlabel() for axes in drawn.axes] == ["Epoch", "Training time (s)"]
    for axes in drawn.axes:
        seeds, best = [lines(axes)[each] for each in (0, 1, 5, 6)], [lines(axes)[each] for each in (3, 8)]
        assert all(len(xs) == 2 for xs, _ in seeds)
        assert all(len(xs) == 2 for xs, _ in best), "one dot for each seed"


def test_token_frequencies_are_a_line_where_they_are_within_the_axis(tmp_path: Path) -> None:
    losses = {"adam": [(6.0, 5.5), (4.5, 4.7)], "sgd": [(7.0, 7.0), (6.9, 6.9)]}
    for number, optimizer in ((1, "adam"), (3, "sgd")):
        record(tmp_path, number, "lstm", losses[optimizer], optimizer=optimizer, unigram_ppl={"validation": 150.0})
    for number in (1, 5):
        drawn = figure(tmp_path, number)
        assert [[150.0, 150.0] in [ys for _, ys in lines(axes)] for axes in drawn.axes] == [True, False]
        assert legend(drawn) == ["Train", "Validation", "best epoch", "token frequencies"]
    assert [[150.0, 150.0] in [ys for _, ys in lines(axes)] for axes in figure(tmp_path, 0).axes] == [True, True]
    record(tmp_path / "off", 1, "lstm", losses["adam"], unigram_ppl={"validation": 1000.0})
    assert legend(figure(tmp_path / "off", 1)) == ["Train", "Validation", "best epoch"]


def test_a_legend_that_would_be_wider_than_the_figure_has_more_rows(tmp_path: Path) -> None:
    for seed in (1, 2):
        for number, model in ((14, "lstm"), (18, "gpt1")):
            record(tmp_path, number, model, [(6.0, 5.5), (4.5, 4.7)], optimizer="momentum", layers=4, seed=seed,
                   finish=seed == 1, unigram_ppl={"validation": 150.0})  # fmt: skip
    wide = spec(tmp_path, 0).content
    assert wide is not None
    for content in (wide, in_one_column(wide)):
        assert content is not None
        drawn = draw_figure(content)
        names = ["GPT-1 4L Momentum (18)†", "LSTM 4L Momentum (14)†"]
        assert legend(drawn) == [*names, "mean of the seeds", "best epoch", "token frequencies"]
        drawn.canvas.draw()
        box = drawn.legends[0].get_window_extent()
        assert 0.0 <= box.x0 < box.x1 <= drawn.bbox.width
        assert not any((tight := axes.get_tightbbox()) and box.overlaps(tight) for axes in drawn.axes)


def test_epochs_are_whole_and_perplexities_plain_numbers(tmp_path: Path) -> None:
    twelve(tmp_path)
    axes = figure(tmp_path, 1).axes[2]
    axes.figure.canvas.draw()
    epochs = [text.get_text() for text in axes.get_xticklabels() if text.get_text()]
    assert epochs
    assert all(text.isdigit() for text in epochs)
    ppls = [text.get_text() for text in axes.get_yticklabels() if text.get_text()]
    assert len(ppls) >= 3
    assert all(text.replace(",", "").isdigit() for text in ppls)


def test_each_seed_is_a_thin_line_and_a_dot_and_their_mean_a_thick_line(tmp_path: Path) -> None:
    for seed, valid in ((1, 4.0), (2, 4.2), (3, 4.6)):
        record(tmp_path, 1, "lstm", [(5.0, 5.0), (4.0, valid)], seed=seed)
    drawn = figure(tmp_path, 1)
    validation = drawn.axes[0].get_lines()[6:]
    ppls = [pytest.approx(math.exp(loss)) for loss in (4.0, 4.2, 4.6)]
    *seeds, mean, best, _ = [np.asarray(line.get_ydata()).tolist() for line in validation]
    assert [ys[1] for ys in seeds] == ppls == best
    assert mean[1] == pytest.approx(sum(math.exp(loss) for loss in (4.0, 4.2, 4.6)) / 3)
    assert validation[0].get_linewidth() < validation[3].get_linewidth()
    assert legend(drawn) == ["Train", "Validation", "mean of the seeds", "best epoch"]


def test_a_mean_leaves_out_no_seed_that_diverged(tmp_path: Path) -> None:
    record(tmp_path, 1, "lstm", [(5.0, 5.0), (4.0, 4.0)], seed=1)
    record(tmp_path, 1, "lstm", [(5.0, 5.0), (NAN, NAN)], seed=2)
    validation = lines(figure(tmp_path, 1).axes[0])[5:]
    assert validation[2][0] == [1.0]
    assert validation[2][1] == pytest.approx([math.exp(5.0)])
    assert [len(xs) for xs, _ in validation[:2]] == [2, 1]


def test_missing_runs_have_no_panel_and_figures_without_runs_say_why(tmp_path: Path) -> None:
    record(tmp_path, 1, "lstm", [(6.0, 5.5)], finish=False)
    drawn = figure(tmp_path, 1)
    assert [[text.get_text() for text in axes.texts] for axes in drawn.axes] == [["lost"]]
    assert "Not finished: 1." in caption(tmp_path, 1)
    for number, reason in (
        (2, "no GPT-1 with 1 layer has completed an epoch"),
        (3, "no LSTM with more than one layer has completed an epoch"),
        (11, "no targets were fixed before the runs, and it would rank optimizers by them"),
    ):
        omitted = spec(tmp_path, number)
        assert (omitted.content, omitted.omitted) == (None, reason)


@pytest.mark.parametrize("loss", [NAN, INF, math.log(LARGEST_PPL) + 1.0])
def test_values_that_are_off_scale_are_marked_at_the_edge(tmp_path: Path, loss: float) -> None:
    record(tmp_path, 1, "lstm", [(6.0, 5.5), (loss, loss)])
    drawn = figure(tmp_path, 1)
    axes = drawn.axes[0]
    assert [xs for xs, _ in lines(axes)] == [[1.0], [], [2.0], [1.0], [1.0], [2.0]]
    assert lines(axes)[2][1] == [0.97]
    assert "beyond the axis" in legend(drawn)
    assert "Crosses: not finite, or too large to draw." in caption(tmp_path, 1)
    assert math.isfinite(axes.get_ylim()[1])


def test_a_run_with_only_nan_has_figures_where_something_can_be_drawn(tmp_path: Path) -> None:
    record(tmp_path, 1, "lstm", [(NAN, NAN)])
    specs = figure_specs(choose_group(Store(tmp_path / "runs").runs()))
    assert [each.number for each in specs if each.content] == [1, 5, 9]
    assert all(each.content or each.omitted for each in specs)
    for content in (each.content for each in specs if each.content):
        assert encode_figure(draw_figure(content), "png").startswith(b"\x89PNG")


def test_captions_have_two_lines_and_figures_say_what_is_exploratory(tmp_path: Path) -> None:
    for seed in (1, 2):
        twelve(tmp_path, seed=seed)
    group = choose_group(Store(tmp_path / "runs").runs())
    for exploratory in (True, False):
        for each in figure_specs(group, targets_ppl=[100.0], exploratory=exploratory):
            assert each.content, each.omitted
            assert (each.content.stamp == "exploratory") == exploratory
            words = [text.get_text() for text in draw_figure(each.content).texts]
            assert ("exploratory" in words) == exploratory
            assert len(each.caption) <= 200


def test_experiments_beyond_the_twelve_get_panels_too(tmp_path: Path) -> None:
    record(tmp_path, 1, "lstm", [(6.0, 5.5)])
    record(tmp_path, 31, "lstm", [(6.0, 5.4)], name="a very long name with a rocket 🚀 in it & $x^2$")
    record(tmp_path, 32, "lstm", [(6.0, 5.4)], layers=3)
    titles = [axes.get_title(loc="left") for axes in figure(tmp_path, 1).axes]
    assert titles == ["(a) Adam (1)", "(b) Adam (31: a very long name with a rocket …"]
    assert [axes.get_title(loc="left") for axes in figure(tmp_path, 3).axes] == ["3 layers, Adam (32)"]
    assert displayable("🚀 \x1b $x$") == "[rocket] \\x1b $x$"
    assert encode_figure(figure(tmp_path, 9), "png")


def test_bars_are_annotated_with_their_values_or_as_not_reached(tmp_path: Path) -> None:
    twelve(tmp_path)
    memory = figure(tmp_path, 9).axes[0]
    assert [text.get_text() for text in memory.texts] == ["123"] * 12
    assert memory.get_xlabel() == "Peak host memory (MiB)"
    times = figure(tmp_path, 10).axes[0]
    found = dict(zip([label.get_text() for label in times.get_yticklabels()], times.texts, strict=True))
    assert found["LSTM 1L SGD (3)"].get_text() == "not reached"
    assert found["GPT-1 1L Adam (5)"].get_text() == "1.0"
    assert found["LSTM 4L AdamW (10)"].get_text() == "2.0"


def test_every_seed_is_a_dot_on_its_bar(tmp_path: Path) -> None:
    for seed, loss, seconds in ((1, 4.0, 10.0), (2, 4.2, 30.0), (3, 5.0, 20.0)):
        record(tmp_path, 1, "lstm", [(loss, loss)], seed=seed, seconds=seconds, device="cuda:0", samples=2,
               process_mib=100.0 * seed)  # fmt: skip
    assert lines(figure(tmp_path, 9).axes[0]) == [([100.0, 200.0, 300.0], [0, 0, 0])]
    (times,) = figure(tmp_path, 10, targets_ppl=[60.0]).axes
    assert lines(times) == [([10.0], [0])]
    assert [text.get_text() for text in times.texts] == ["reached by 1 of 3"]
    (times,) = figure(tmp_path, 10, targets_ppl=[70.0]).axes
    assert lines(times) == [([10.0, 30.0], [0, 0])]
    assert [text.get_text() for text in times.texts] == ["30.0"], "the median, with the third seed as infinite"
    assert ", fixed before the runs; dots are seeds." in spec(tmp_path, 10, targets_ppl=[60.0]).caption


def test_bars_mark_unfinished_runs_and_unknown_times(tmp_path: Path) -> None:
    record(tmp_path, 1, "lstm", [(4.0, 4.0)], finish=False)
    run = record(tmp_path, 2, "lstm", [(4.0, 4.0)], optimizer="adamw")
    run.paths.events.write_text(
        re.sub(r'"elapsed_train_s":1.0', '"elapsed_train_s":null', run.paths.events.read_text())
    )
    axes = figure(tmp_path, 10).axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["LSTM 1L Adam (1)†", "LSTM 1L AdamW (2)"]
    assert [text.get_text() for text in axes.texts] == ["1.0", "times unknown"]
    assert shorten("a long name of an experiment (12)†", 20) == "a long name o… (12)†"


def test_the_profile_rises_to_one_for_the_optimizer_that_solves_all_problems(tmp_path: Path) -> None:
    twelve(tmp_path)
    axes = figure(tmp_path, 11, targets_ppl=[170.0, 200.0]).axes[0]
    assert axes.get_xscale() == "log"
    assert axes.get_xlim()[0] == 1.0
    steps, dots = lines(axes)[::2], lines(axes)[1::2]
    assert [ys[-1] for _, ys in steps] == [1.0, 1.0, 0.0, 0.0]
    assert [len(xs) for xs, _ in dots] == [4, 4, 0, 0]
    assert legend(axes.figure) == ["Adam", "AdamW", "Momentum", "SGD"]  # type: ignore[arg-type]
    assert (
        "over 2 workloads, too few for a score, and 2 targets fixed beforehand"
        in spec(tmp_path, 11, targets_ppl=[170.0, 200.0]).caption
    )
    assert spec(tmp_path, 11, targets_ppl=[1.0]).omitted.endswith("none reached a target")


@pytest.mark.slow
@pytest.mark.parametrize("image_format", ["png", "pdf", "svg"])
def test_the_same_data_gives_the_same_file(tmp_path: Path, image_format: ImageFormat) -> None:
    twelve(tmp_path)
    first, second = (encode_figure(figure(tmp_path, 6), image_format) for _ in range(2))
    assert first == second
    if image_format != "svg":  # an SVG file names its generator in a comment
        assert b"matplotlib.org" not in first
    if image_format == "pdf":
        assert b"/FontFile2" in first
        assert b"CreationDate" not in first


def test_a_matplotlibrc_has_no_effect(tmp_path: Path) -> None:
    import matplotlib

    twelve(tmp_path)
    before = encode_figure(figure(tmp_path, 1), "png")
    with matplotlib.rc_context({"font.size": 30.0, "axes.facecolor": "black", "savefig.dpi": 20}):
        assert encode_figure(figure(tmp_path, 1), "png") == before
        assert matplotlib.rcParams["font.size"] == 30.0


@pytest.mark.parametrize(("low", "high"), [(30.0, 2000.0), (100.0, 130.0), (1640.0, 2200.0), (2.0, 1e6), (5.0, 5.2)])
def test_a_log_axis_has_a_handful_of_ticks(low: float, high: float) -> None:
    ticks = log_ticks(low, high)
    assert 3 <= len(ticks) <= 8
    assert all(low <= tick <= high for tick in ticks)


@pytest.mark.parametrize(("longest", "unit"), [(0.0, "s"), (170.0, "s"), (200.0, "min"), (20_000.0, "h")])
def test_times_are_in_the_unit_that_suits(longest: float, unit: str) -> None:
    assert time_unit(longest)[0] == unit


@pytest.mark.parametrize("number", [0, 1, 10])
def test_figures_match_the_expected_images(tmp_path: Path, number: int) -> None:
    """With tolerance: versions of matplotlib and FreeType differ by shades of gray. `LMCONSOLE_SNAPSHOTS=write` redraws
    the expected images."""
    import os

    twelve(tmp_path, unigram_ppl={"validation": 200.0})
    expected = Path(__file__).parent / "pictures" / f"figure-{number}.png"
    drawn = figure(tmp_path, number)
    out = io.BytesIO()
    drawn.savefig(out, format="png", dpi=80, metadata={"Software": None})
    if os.environ.get("LMCONSOLE_SNAPSHOTS") == "write":
        expected.parent.mkdir(exist_ok=True)
        expected.write_bytes(out.getvalue())
    actual = tmp_path / "actual.png"
    actual.write_bytes(out.getvalue())
    reference = tmp_path / "expected.png"
    reference.write_bytes(expected.read_bytes())
    assert compare_images(str(reference), str(actual), tol=6.0) is None


def test_experiments_that_are_not_shown_are_counted_in_the_caption(tmp_path: Path) -> None:
    for number in range(1, 44):
        record(tmp_path, number, "lstm", [(5.0, 4.5)])
    assert len(figure(tmp_path, 1).axes) == 16
    assert "27 more experiments are not shown" in caption(tmp_path, 1)
    assert "3 more experiments are not shown" in caption(tmp_path, 9)
    assert spec(tmp_path, 11, targets_ppl=[99.0]).omitted.startswith("no two optimizers trained the same model")
