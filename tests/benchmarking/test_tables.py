"""Numbers and tables as people read them."""

import pytest

from genosparse.benchmarking.tables import markdown_table, significant, text_table


@pytest.mark.parametrize(
    "value,text",
    [
        (None, ""),
        (0.0, "0"),
        (1.0, "1.00"),
        (0.0123456, "0.0123"),
        (9.999, "10.0"),
        (12345.6, "12,300"),
        (999.6, "1,000"),
        (-2.345, "-2.35"),
        (5e-7, "0.000000500"),
    ],
)
def test_significant(value: float | None, text: str) -> None:
    assert significant(value) == text


def test_text_is_aligned() -> None:
    table = text_table(
        ["name", "ms", "note"], [["a", "1.00", ""], ["long name", "12.0", "slow"]], left=("name", "note")
    )
    assert table == ("name         ms  note\n---------  ----  ----\na          1.00\nlong name  12.0  slow")


def test_markdown() -> None:
    table = markdown_table(["name", "ms"], [["a|b", "1.00"]], left=("name",))
    assert table == "| name | ms |\n| --- | ---: |\n| a\\|b | 1.00 |"


def test_no_rows() -> None:
    assert text_table(["name"], []) == "name\n----"
