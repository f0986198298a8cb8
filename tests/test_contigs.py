import gzip
import re
import warnings

import pytest

from genosparse.contigs import ContigMatcher, contig_not_found, match_contigs, no_contig_matches, read_aliases
from genosparse.errors import ContigNotFoundError, FileFormatError, GenosparseWarning


@pytest.mark.parametrize(
    "wanted, available, expected",
    [
        (["chr1", "chrM"], ["chr1", "chrM"], {"chr1": "chr1", "chrM": "chrM"}),
        (["1", "X", "MT"], ["chr1", "chrX", "chrM"], {"1": "chr1", "X": "chrX", "MT": "chrM"}),
        (["1", "1", "M"], ["chr1", "chrX", "chrM"], {"1": "chr1", "M": "chrM"}),
        (["chr1", "chrM", "Chr2"], ["1", "MT", "2"], {"chr1": "1", "chrM": "MT", "Chr2": "2"}),
        (["chr1", "2"], ["chr1", "1"], {"chr1": "chr1", "2": None}),
        (["chr", "chr11"], ["chr1"], {"chr": None, "chr11": None}),
    ],
)
def test_contigs_match_by_name(wanted, available, expected):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert match_contigs(wanted, available) == expected
    translated = [name for name, found in expected.items() if found not in (None, name)]
    assert len(caught) == bool(translated)


def test_the_notice_names_both_sides():
    with pytest.warns(
        GenosparseWarning, match=r"contigs of in\.vcf are matched to ref\.fa by name: '1' is 'chr1', .* 2 more$"
    ):
        match_contigs(
            ["1", "2", "3", "4", "5"], [f"chr{n}" for n in range(9)], wanted_from="in.vcf", available_from="ref.fa"
        )


def test_an_ambiguous_name_is_an_error():
    with pytest.raises(ContigNotFoundError, match="'chrMT' of the input could be any of 'M', 'MT' of the genome"):
        match_contigs(["chrMT"], ["M", "MT"])


@pytest.mark.parametrize("wanted", [["chrM", "MT"], ["MT", "chrM"]])
def test_two_names_for_one_contig_are_an_error(wanted):
    message = rf"contigs '{wanted[0]}' and '{wanted[1]}' of in\.vcf would both be 'MT' of ref\.fa; rename"
    with pytest.raises(ContigNotFoundError, match=message):
        match_contigs(wanted, ["MT"], wanted_from="in.vcf", available_from="ref.fa")
    matcher = ContigMatcher(["MT"], wanted_from="in.vcf", available_from="ref.fa")
    with warnings.catch_warnings(action="ignore", category=GenosparseWarning):
        assert [matcher.match(wanted[0]) for _ in range(2)] == ["MT", "MT"]
        with pytest.raises(ContigNotFoundError, match=message):
            matcher.match(wanted[1])


def test_lengths_that_differ_forbid_another_name():
    lengths = {"chrM": 16571, "chr1": 1000, "chr2": None}
    genome = {"MT": 16569, "1": 1000, "2": 5}
    message = r"contig 'chrM' \(16571 bp\) of the input is not taken for 'MT' \(16569 bp\) of the genome: their lengths"
    with pytest.warns(GenosparseWarning) as caught:
        assert match_contigs([*lengths, "3"], genome, wanted_lengths=lengths) == {
            "chrM": None,
            "chr1": "1",
            "chr2": "2",
            "3": None,
        }
    assert [bool(re.match(message, str(notice.message))) for notice in caught] == [True, False]
    assert "'chr1' is '1', 'chr2' is '2'" in str(caught[1].message)
    matcher = ContigMatcher(genome, wanted_lengths=lengths)
    with pytest.warns(GenosparseWarning, match=message):
        assert matcher.match("chrM") is None
    assert matcher.match("chrM") is None  # a second notice would be an error here
    # Where hg19 has both, only the right one is taken; a name that is there is taken whatever its length.
    both = match_contigs(["chrM", "MT"], {"MT": 16569, "chrM": 16569}, wanted_lengths={"chrM": 16571, "MT": 16569})
    assert both == {"chrM": "chrM", "MT": "MT"}


def test_lengths_choose_between_names():
    with pytest.warns(GenosparseWarning, match="'chrMT' is 'M'"):
        found = match_contigs(["chrMT"], {"M": 16571, "MT": 16569}, wanted_lengths={"chrMT": 16571})
    assert found == {"chrMT": "M"}


def test_a_matcher_gives_one_notice_in_all():
    matcher = ContigMatcher(["chr1", "chr2", "chr3"])
    assert matcher.match("chr3") == "chr3"
    with pytest.warns(GenosparseWarning, match="contig '1' of the input is read as 'chr1'"):
        assert matcher.match("1") == "chr1"
    assert matcher.match("2") == "chr2"  # a second notice would be an error here
    assert matcher.match("4") is None


def test_errors_for_contigs_that_are_not_there():
    available = ["chr17", *(f"chr{n}" for n in range(1, 17))]
    assert str(contig_not_found("17", available, "hg38.fa")).startswith(
        "contig '17' is not in hg38.fa (it has 'chr17' and 16 others);"
    )
    assert "(it has 'a', 'b')" in str(contig_not_found("c", ["a", "b"], "x.fa"))
    assert "no contig of in.vcf ('1') is in x.fa ('a', 'b', 'c', 'd' and 1 other)" in str(
        no_contig_matches(["1"], list("abcde"), "in.vcf", "x.fa")
    )


ALIASES = {"NC_000001.10": "1", "GPC_1": "1", "MT": "NC_012920.1"}


@pytest.mark.parametrize(
    "wanted, available, expected",
    [
        (["NC_000001.10", "2"], ["1", "2"], {"NC_000001.10": "1", "2": "2"}),
        (["1"], ["NC_000001.10"], {"1": "NC_000001.10"}),
        (["NC_012920.1"], ["MT"], {"NC_012920.1": "MT"}),
        (["GPC_2"], ["1"], {"GPC_2": None}),
    ],
)
def test_aliases_match_in_either_direction_without_a_notice(wanted, available, expected):
    assert match_contigs(wanted, available, aliases=ALIASES) == expected
    matcher = ContigMatcher(available, aliases=ALIASES)
    assert {name: matcher.match(name) for name in wanted} == expected


def test_an_alias_may_be_a_name_alike_of_the_genomes():
    with pytest.warns(GenosparseWarning, match="'NC_000001.10' is 'chr1', 'NC_012920.1' is 'chrM'"):
        found = match_contigs(["NC_000001.10", "NC_012920.1"], ["chr1", "chrM"], aliases=ALIASES)
    assert found == {"NC_000001.10": "chr1", "NC_012920.1": "chrM"}


def test_an_alias_goes_before_a_name_alike():
    assert match_contigs(["chr1"], ["1", "one"], aliases={"one": "chr1"}) == {"chr1": "one"}


def test_lengths_forbid_an_alias_too():
    aliases = {"chrM": "MT"}
    message = r"contig 'chrM' \(16571 bp\) of the input is not taken for 'MT' \(16569 bp\)"
    with pytest.warns(GenosparseWarning, match=message):
        found = match_contigs(["chrM"], {"MT": 16569}, wanted_lengths={"chrM": 16571}, aliases=aliases)
    assert found == {"chrM": None}
    assert match_contigs(["chrM"], {"MT": 16569}, wanted_lengths={"chrM": 16569}, aliases=aliases) == {"chrM": "MT"}


def test_two_aliases_that_the_input_has_both_are_an_error():
    with pytest.raises(ContigNotFoundError, match=r"contigs 'NC_000001.10' and 'GPC_1' of in\.vcf would both be '1'"):
        match_contigs(["NC_000001.10", "GPC_1"], ["1"], aliases=ALIASES, wanted_from="in.vcf")
    with pytest.raises(ContigNotFoundError, match=r"contig '1' of the input could be any of 'NC_000001\.10', 'GPC_1'"):
        match_contigs(["1"], ["GPC_1", "NC_000001.10"], aliases=ALIASES)


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_files_of_aliases(tmp_path, pack):
    path = tmp_path / "aliases.tsv"
    path.write_bytes(pack(b"# name\talias\nNC_000001.10\t1\n\nGPC_1   1\r\nMT NC_012920.1\nHLA A\tHLA-A\nGPC_1\t1\n"))
    assert read_aliases(path) == {**ALIASES, "HLA A": "HLA-A"}


@pytest.mark.parametrize(
    "text, message",
    [
        ("a\tb\tc\n", r"x\.tsv, line 1: 3 columns in 'a\\tb\\tc'; expected two names"),
        ("#x\na\n", r"x\.tsv, line 2: 1 columns in 'a'"),
        ("a\t\n", r"x\.tsv, line 1: 2 columns"),
        ("a b\na c\n", r"x\.tsv, line 2: contig 'a' is both 'b' and 'c'"),
        ("a b\nb c\n", r"x\.tsv: contig 'a' is 'b', which in turn is 'c'"),
        ("a b\nb a\n", r"x\.tsv: contig 'a' is 'b', which in turn is 'a'"),
    ],
)
def test_aliases_that_contradict_each_other(tmp_path, text, message):
    (tmp_path / "x.tsv").write_text(text)
    with pytest.raises(FileFormatError, match=message):
        read_aliases(tmp_path / "x.tsv")
