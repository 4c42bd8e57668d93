"""Tables as Markdown and back, and the names of their columns."""

from longred.report.names import metric_name
from longred.report.text_table import Table, read_blocks


def test_a_table_is_read_back_from_its_markdown() -> None:
    table = Table(["model", "a|b"], [["back\\slash", "1.0"], ["two |", ""]])
    text = f"# Title\n\n{table.markdown()}\nA note,\nin two lines.\n"
    assert read_blocks(text) == ["# Title", table, "A note,\nin two lines."]


def test_every_metric_has_one_name() -> None:
    names = {
        ("short/cloze", 0): "cloze",
        ("capacity/general", 0): "general",
        ("capacity/short", 0): "short average",
        ("retention/general", 0): "general retention",
        ("retention/short", 0): "short retention",
        ("ruler/average", 4096): "RULER 4,096",
        ("ruler/niah_single_1", 4096): "niah_single_1 at 4,096",
        ("retention/ruler", 4096): "RULER retention at 4,096",
        ("ruler_v2/average", 4096): "RULER v2 4,096",
        ("retention/ruler_v2", 4096): "RULER v2 retention at 4,096",
        ("similarity/last", 0): "similarity",
        ("held_out/nats_per_token", 0): "nats/token",
    }
    assert {key: metric_name(*key) for key in names} == names
