"""Every score against its definition, written out on strings, one unpadded window at a time."""

import gc

import numpy as np
import pytest
import torch

import genosparse as gs
from genosparse.attention import SparsePattern
from genosparse.readers import Genome, Variant
from genosparse.variant_effect import SCORES, score_variants
from genosparse.variant_effect.forwards import Forwards, Outcome
from genosparse.variant_effect.methods import methods_for
from genosparse.variant_effect.windows import Change, allele_window, change_of

CONTEXT = 101
SETTINGS = {"context": CONTEXT, "batch_bases": 8 * CONTEXT}
CODES = {letter: code for code, letter in enumerate("=ACMGRSVTWYHKDBN")}
COMPLEMENT = str.maketrans("ACGTRYKMN", "TGCAYRMKN")
MASK = 16
FLANK = 32


@pytest.fixture(scope="module")
def sequences():
    letters = np.random.default_rng(3).choice(list("ACGT"), size=(3, 260))
    long, mixed, short = ("".join(row) for row in letters)
    long = f"{long[:118]}GAAAAAAAT{long[127:150]}TCACACACAG{long[160:]}"
    mixed = f"{mixed[:110].lower()}{'N' * 13}{mixed[123:130]}RY{mixed[132:]}"
    return {"long": long, "mixed": mixed, "short": short[:60]}


@pytest.fixture(scope="module")
def genome(sequences, tmp_path_factory):
    path = tmp_path_factory.mktemp("genome") / "g.fa"
    path.write_text("".join(f">{name}\n{sequence}\n" for name, sequence in sequences.items()))
    with Genome(path) as opened:
        yield opened


@pytest.fixture(scope="module")
def encoder():
    torch.manual_seed(1)
    pattern = SparsePattern(window=8, stride=16, num_global=1)
    encoder = gs.Encoder(gs.EncoderConfig(d_model=16, num_layers=2, num_heads=2, patterns=(pattern,), max_length=300))
    with torch.no_grad():
        for parameter in encoder.parameters():  # larger than at the start of training, so that scores differ clearly
            if parameter.ndim > 1:
                parameter.mul_(4)
    return encoder.eval()


def variant_at(sequences, contig, position0, length, *alts):
    """REF as the genome has it; in an ALT a dot is REF."""
    ref = sequences[contig][position0 : position0 + length].upper()
    return Variant(contig, position0, ref, tuple(alt.replace(".", ref) for alt in alts))


def other(base):
    return "ACGTA"["ACGT".index(base.upper()) + 1]


@pytest.fixture(scope="module")
def variants(sequences):
    """One of everything: at contigs' ends, within repeats, beside N, in lower case, on a contig below the context."""

    def change(contig, start, length, make):
        ref = sequences[contig][start : start + length].upper()
        return Variant(contig, start, ref, tuple(make(ref)))

    def snv(ref):
        return [other(ref)]

    made = [change("long", place, 1, snv) for place in (0, 70, 122, 259)]
    made += [change("mixed", place, 1, snv) for place in (20, 107, 125, 133)]
    made += [change("short", place, 1, snv) for place in (0, 31)]
    made += [
        change("long", 80, 2, lambda ref: [other(ref[0]) + other(ref[1])]),  # MNVs
        change("long", 90, 3, lambda ref: [other(ref[0]) + ref[1] + other(ref[2])]),
        change("mixed", 123, 4, lambda ref: [other(ref[0]) + ref[1:3] + other(ref[3])]),
        change("long", 100, 1, lambda ref: [ref + other(ref) + "GATTA"]),  # insertions
        change("long", 0, 1, lambda ref: [other(ref) + ref]),
        change("long", 259, 1, lambda ref: [ref + other(ref) + other(ref)]),
        change("long", 122, 1, lambda ref: [ref + "AAA"]),
        change("long", 151, 1, lambda ref: ["CACAC"]),
        change("mixed", 109, 1, lambda ref: [ref + "CGTGCATTGCA" * 3]),
        change("short", 30, 1, lambda ref: [ref + "GGATCTTAGC"]),
        change("long", 60, 5, lambda ref: [ref[0]]),  # deletions
        change("long", 0, 4, lambda ref: [ref[-1]]),
        change("long", 252, 8, lambda ref: [ref[0]]),
        change("long", 119, 4, lambda ref: [ref[0]]),
        change("long", 40, 31, lambda ref: [ref[0]]),
        change("mixed", 123, 6, lambda ref: [ref[0]]),
        change("short", 20, 12, lambda ref: [ref[0]]),
        change("long", 170, 3, lambda ref: [other(ref[0]) + "TTC" + other(ref[2])]),  # neither
        change("mixed", 60, 6, lambda ref: [other(ref[0]) + other(ref[5])]),
        # Several ALTs: an SNV, a deletion, an insertion and a longer one
        change("long", 118, 4, lambda ref: [other(ref[0]) + ref[1:], ref[0], ref + "A", ref[0] + "CC" + ref[1:]]),
    ]
    return made


# The definitions


def what_changes(sequence, variant, alt):
    """(start, REF's bases, ALT's bases) over all ways to write the same haplotype, each place tried."""
    start = variant.position0
    haplotype = sequence[:start] + alt + sequence[start + len(variant.ref) :]
    difference = abs(len(haplotype) - len(sequence))
    shorter, longer = sorted((sequence, haplotype), key=len)
    places = [
        place
        for place in range(len(shorter) + 1)
        if difference and longer[:place] + longer[place + difference :] == shorter
    ]
    if places:
        first, last = places[0], places[-1]
        in_shorter, in_longer = shorter[first:last], longer[first : last + difference]
        return (first, in_longer, in_shorter) if longer is sequence else (first, in_shorter, in_longer)
    before = num_shared(sequence, haplotype)
    behind = num_shared(sequence[before:][::-1], haplotype[before:][::-1])
    return before, sequence[before : len(sequence) - behind], haplotype[before : len(haplotype) - behind]


def num_shared(one, two):
    """Letters that two texts begin with alike."""
    return next(
        (index for index, pair in enumerate(zip(one, two, strict=False)) if pair[0] != pair[1]), min(len(one), len(two))
    )


def reverse_complement(sequence):
    return sequence.translate(COMPLEMENT)[::-1]


def window_of(haplotype, start, length, context):
    """The window with an allele in its middle, and the allele's index in it."""
    size = min(context, len(haplotype))
    first = start - -(-(size - length) // 2)
    first = min(max(first, 0), len(haplotype) - size)
    return haplotype[first : first + size], start - first


def strands_of(sequence, start, ref, alt, context):
    """For each strand (window, index, length of allele) of REF and of ALT."""
    for is_reverse in (False, True):
        pair = []
        for allele in (ref, alt):
            haplotype, at = sequence[:start] + allele + sequence[start + len(ref) :], start
            if is_reverse:
                haplotype, at = reverse_complement(haplotype), len(haplotype) - start - len(allele)
            pair.append((*window_of(haplotype, at, len(allele), context), len(allele)))
        yield is_reverse, pair


def log_probs_of(encoder, window, masked=()):
    tokens = torch.tensor([[CODES[letter] for letter in window]])
    tokens[0, list(masked)] = MASK
    with torch.no_grad():
        return encoder.base_logits(tokens)[0].double().log_softmax(-1).numpy()


def define_llr(encoder, sequence, start, ref, alt, context):
    window_start = min(max(start - -(-(context - len(ref)) // 2), 0), max(0, len(sequence) - context))
    window = sequence[window_start : window_start + context]
    changed = [offset for offset in range(len(ref)) if ref[offset] != alt[offset]]
    total = 0.0
    for is_reverse in (False, True):
        shown = reverse_complement(window) if is_reverse else window
        sites = [start - window_start + offset for offset in changed]
        if is_reverse:
            sites = [len(window) - 1 - site for site in sites]
        log_probs = log_probs_of(encoder, shown, sites)
        for site, offset in zip(sites, changed, strict=True):
            bases = [allele[offset].translate(COMPLEMENT) if is_reverse else allele[offset] for allele in (alt, ref)]
            total += log_probs[site, "ACGT".index(bases[0])] - log_probs[site, "ACGT".index(bases[1])]
    return total / 2


def define_delta_pll(encoder, sequence, start, ref, alt, context):
    total = 0.0
    for _, pair in strands_of(sequence, start, ref, alt, context):
        known = [[index for index, letter in enumerate(window) if letter in "ACGT"] for window, _, _ in pair]
        size = min(max(len(ref), len(alt)) + 2 * FLANK, *map(len, known))
        sums = []
        for (window, at, length), indices in zip(pair, known, strict=True):
            first = sum(index < at for index in indices) - -(-(size - length) // 2)
            first = min(max(first, 0), len(indices) - size)
            stretch = indices[first : first + size]
            sums.append(0.0)
            for group in range(4):
                masked = stretch[group::4]
                log_probs = log_probs_of(encoder, window, masked)
                sums[-1] += sum(log_probs[index, "ACGT".index(window[index])] for index in masked)
        total += sums[1] - sums[0]
    return total / 2


def define_unmasked(encoder, sequence, start, ref, alt, context):
    scores = dict.fromkeys((name for name in SCORES if name not in ("llr", "delta_pll")), 0.0)
    moved = []
    for is_reverse, pair in strands_of(sequence, start, ref, alt, context):
        log_probs, pooled, log_odds = [], [], []
        for window, at, length in pair:
            log_probs.append(log_probs_of(encoder, window))
            with torch.no_grad():
                hidden = encoder(torch.tensor([[CODES[letter] for letter in window]]))[0].double().numpy()
            more = 0 if len(ref) == len(alt) else 1
            site = [
                index
                for index in range(max(0, at - more), min(len(window), at + length + more))
                if window[index] != "N"
            ]
            everywhere = [index for index, letter in enumerate(window) if letter != "N"]
            pooled.append([hidden[site].mean(0), hidden[everywhere].mean(0)])
            p = np.exp(log_probs[-1])
            distances = [
                index - at if index < at else index - at - length + 1 if index >= at + length else 0
                for index in range(len(window))
            ]
            log_odds.append(
                {
                    -distance if is_reverse else distance: np.log(p[index] / (1 - p[index]))
                    for index, distance in enumerate(distances)
                    if distance and window[index] in "ACGT"
                }
            )
        if len(ref) == len(alt):
            (window, at, _), changed_window = pair[0], pair[1][0]
            for index in range(at, at + len(ref)):
                row = log_probs[0][index]
                scores["llr_unmasked"] += (
                    row["ACGT".index(changed_window[index])] - row["ACGT".index(window[index])]
                ) / 2
        for suffix, before, behind in zip(("", "_window"), *pooled, strict=True):
            lengths = np.linalg.norm(before) * np.linalg.norm(behind)
            scores[f"embedding_l1{suffix}"] += np.abs(behind - before).sum() / 2
            scores[f"embedding_l2{suffix}"] += np.sqrt(((behind - before) ** 2).sum()) / 2
            scores[f"embedding_cosine{suffix}"] += (1 - behind @ before / lengths) / 2
            scores[f"embedding_dot{suffix}"] += behind @ before / 2
        moved.append(
            {
                distance: np.abs(log_odds[1][distance] - odds).max()
                for distance, odds in log_odds[0].items()
                if distance in log_odds[1]
            }
        )
    mean = {distance: (moved[0][distance] + moved[1][distance]) / 2 for distance in set(moved[0]) & set(moved[1])}
    scores["influence"] = np.mean(list(mean.values()))
    scores["influence_max"] = max(mean.values())
    scores["influence_distance"] = max(mean, key=mean.get)
    return scores


@pytest.fixture(scope="module")
def table(encoder, genome, variants):
    return score_variants(encoder, genome, variants, scores=list(SCORES), **SETTINGS)


def rows_of(variants):
    return [(variant, alt) for variant in variants for alt in variant.alts]


def test_every_score_equals_its_definition(encoder, sequences, variants, table):
    assert set(table.status) == {"scored"}
    expected = {name: [] for name in SCORES}
    for variant, alt in rows_of(variants):
        sequence = sequences[variant.contig].upper()
        given = (encoder, sequence, *what_changes(sequence, variant, alt), CONTEXT)
        scores = define_unmasked(*given) | {"delta_pll": define_delta_pll(*given), "llr": np.nan}
        if len(variant.ref) == len(alt):
            scores["llr"] = define_llr(*given)
        else:
            scores["llr_unmasked"] = np.nan
        for name in SCORES:
            expected[name].append(scores[name])
    for name in SCORES:
        np.testing.assert_allclose(table[name], expected[name], atol=2e-5, rtol=1e-5, err_msg=name)
        assert np.nanstd(expected[name]) > 1e-3, name  # or nothing was compared


def test_what_auto_gives_to_whom(encoder, genome, variants, table):
    auto = score_variants(encoder, genome, variants, **SETTINGS)
    is_substitution = np.array([len(variant.ref) == len(alt) for variant, alt in rows_of(variants)])
    assert list(auto.scores) == ["llr", "delta_pll"]
    assert set(auto.status) == {"scored"}
    for name, has_it in (("llr", is_substitution), ("delta_pll", ~is_substitution)):
        np.testing.assert_array_equal(np.isnan(auto[name]), ~has_it)
        np.testing.assert_allclose(auto[name][has_it], table[name][has_it], atol=1e-5)


def test_each_score_alone_is_the_same_as_among_all(encoder, genome, variants, table):
    some = [variant for variant in variants if variant.contig != "long" or len(variant.alts) > 1]
    kept = np.concatenate([[variant in some] * len(variant.alts) for variant in variants])
    for name in SCORES:
        alone = score_variants(encoder, genome, some, scores=name, **SETTINGS)
        assert list(alone.scores) == [name]
        np.testing.assert_allclose(alone[name], table[name][kept], atol=1e-5, rtol=1e-5)
        assert set(alone.status) == ({"scored", "unsupported"} if name.startswith("llr") else {"scored"})


def test_the_other_strand_of_the_genome_gives_the_same_scores(encoder, sequences, variants, table, tmp_path):
    path = tmp_path / "reverse.fa"
    path.write_text("".join(f">{name}\n{reverse_complement(text.upper())}\n" for name, text in sequences.items()))
    mirrored = [
        Variant(
            variant.contig,
            len(sequences[variant.contig]) - variant.position0 - len(variant.ref),
            reverse_complement(variant.ref),
            tuple(map(reverse_complement, variant.alts)),
        )
        for variant in variants
    ]
    with Genome(path) as genome:
        reverse = score_variants(encoder, genome, mirrored, scores=list(SCORES), **SETTINGS)
    # Windows of llr hold the same bases on both strands: with two or four sites in an odd context there is no middle.
    centred = np.array([len(what_changes(sequences[v.contig].upper(), v, alt)[1]) % 2 for v, alt in rows_of(variants)])
    for name in SCORES:
        rows = centred == 1 if name == "llr" else slice(None)
        sign = -1 if name == "influence_distance" else 1
        np.testing.assert_allclose(reverse[name][rows], sign * table[name][rows], atol=2e-5, rtol=1e-5, err_msg=name)


def test_all_ways_to_write_an_indel_have_the_same_scores(encoder, genome, sequences):
    """Left-aligned, right-aligned, in between, and with bases to spare; deleted and inserted, one base and a repeat."""
    run, repeat = sequences["long"].index("AAAAAAA"), sequences["long"].index("CACACACA")

    def deletion(start, length):
        return variant_at(sequences, "long", start - 1, length + 1, sequences["long"][start - 1])

    def insertion(start, bases):
        return variant_at(sequences, "long", start - 1, 1, f".{bases}")

    wide = sequences["long"][run - 3 : run + 9]
    with_more = Variant("long", run - 3, wide, (wide.replace("A" * 7, "A" * 5),))
    for ways in (
        [deletion(run, 2), deletion(run + 3, 2), deletion(run + 5, 2), with_more],
        [insertion(run, "A"), insertion(run + 4, "A"), insertion(run + 7, "A")],
        [deletion(repeat, 2), deletion(repeat + 1, 2), deletion(repeat + 6, 2)],
        [insertion(repeat, "CA"), insertion(repeat + 3, "AC"), insertion(repeat + 8, "CA")],
    ):
        scores = score_variants(encoder, genome, ways, scores=list(SCORES), **SETTINGS)
        assert set(scores.status) == {"scored"}
        for name, values in scores.scores.items():
            np.testing.assert_array_equal(values, values[0], err_msg=name)
        assert abs(scores["delta_pll"][0]) > 1e-3


def test_what_changes_is_the_same_however_it_is_written(genome, sequences):
    run = sequences["long"].index("AAAAAAA")
    for place in range(7):
        variant = variant_at(sequences, "long", run + place - 1, 2, sequences["long"][run + place - 1])
        assert change_of(variant, variant.alts[0], genome, "long", 50) == Change(
            "long", run, run + 7, "AAAAAAA", "AAAAAA"
        )


def test_a_model_that_knows_nothing_gives_no_indel_a_preference(genome, variants):
    """Length has no vote: neither the alleles', nor the contig's end, nor N have one."""
    encoder = gs.Encoder(
        gs.EncoderConfig(d_model=16, num_layers=1, num_heads=2, patterns=(SparsePattern(window=8),), max_length=300)
    )
    with torch.no_grad():
        encoder.head.linear.weight.zero_()
    scores = score_variants(encoder, genome, variants, scores="delta_pll", **SETTINGS)
    assert set(scores.status) == {"scored"}
    np.testing.assert_allclose(scores["delta_pll"], 0, atol=1e-9)


def test_an_allele_that_changes_nothing_has_no_effect(encoder, genome, sequences):
    base = sequences["long"][70]
    forwards = Forwards(encoder, genome, None, context=CONTEXT, num_rows=4, autocast=False)
    methods = methods_for(Change("long", 70, 71, base, base), list(SCORES), forwards)
    forwards.flush()
    scores = {name: value for method in methods for name, value in method.scores().items()}
    assert scores.keys() == SCORES.keys()
    for name in SCORES.keys() - {"embedding_dot", "embedding_dot_window", "influence_distance"}:
        assert scores[name] == 0, name


def test_alts_of_one_record_have_the_scores_that_they_have_apart(encoder, genome, variants, table):
    (several,) = [variant for variant in variants if len(variant.alts) > 1]
    rows = np.array([variant is several for variant, _ in rows_of(variants)])
    apart = [Variant(several.contig, several.position0, several.ref, (alt,)) for alt in several.alts]
    scores = score_variants(encoder, genome, apart, scores=list(SCORES), **SETTINGS)
    for name in SCORES:
        np.testing.assert_allclose(scores[name], table[name][rows], atol=1e-5, rtol=1e-5)


def test_where_a_circular_contig_begins_makes_no_difference(encoder, sequences, tmp_path):
    """On a circle the same as in the middle of a line, across the origin as elsewhere."""
    sequence = sequences["long"]
    sequence = f"AAA{sequence[3:-4]}CAAA"  # a run across the origin
    (tmp_path / "ring.fa").write_text(f">c\n{sequence}\n")
    half = len(sequence) // 2
    given = [(0, 1, "G"), (1, 1, "T"), (258, 2, "A"), (0, 2, "A"), (2, 1, "AGTC"), (5, 40, "A")]
    with Genome(tmp_path / "ring.fa", circular=True) as ring:
        for place, ref_length, alt in given:
            shift = (place - half) % len(sequence)
            turned = sequence[shift:] + sequence[:shift]
            (tmp_path / "line.fa").write_text(f">c\n{turned}\n")
            (tmp_path / "line.fa.fai").unlink(missing_ok=True)
            alleles = (sequence[place : place + ref_length], (alt,))
            with Genome(tmp_path / "line.fa") as line:
                scores = [
                    score_variants(encoder, genome, [Variant("c", at, *alleles)], scores=list(SCORES), **SETTINGS)
                    for genome, at in ((ring, place), (line, half))
                ]
            assert scores[0].status == scores[1].status == "scored"
            for name in SCORES:
                np.testing.assert_allclose(scores[0][name], scores[1][name], atol=1e-5, rtol=1e-5, err_msg=name)


def test_case_and_u_make_no_difference(encoder, genome, sequences):
    upper = [variant_at(sequences, "mixed", 50, 3, "T"), variant_at(sequences, "mixed", 60, 1, ".TT")]
    lower = [
        Variant("mixed", variant.position0, variant.ref.lower(), (variant.alts[0].lower().replace("t", "u"),))
        for variant in upper
    ]
    tables = [score_variants(encoder, genome, given, scores=list(SCORES), **SETTINGS) for given in (upper, lower)]
    for name in SCORES:
        np.testing.assert_array_equal(tables[0][name], tables[1][name])


def test_an_ambiguity_code_of_the_genome_is_read_as_ref(encoder, genome, sequences):
    """R is A or G: what is compared is ALT and REF, not ALT and R."""
    place = sequences["mixed"].index("R")
    scores = score_variants(
        encoder,
        genome,
        [Variant("mixed", place, "A", ("G",)), Variant("mixed", place, "G", ("A",))],
        scores=["delta_pll", "embedding_l2"],
        **SETTINGS,
    )
    assert scores.status.tolist() == ["scored", "scored"]
    assert scores["delta_pll"][0] == -scores["delta_pll"][1] != 0
    assert scores["embedding_l2"][0] == scores["embedding_l2"][1] > 0


def count_rows(encoder, genome, variants, scores):
    """Rows of the forward passes, without those that only fill a batch: one row at a time has none."""
    shapes = []
    handle = encoder.register_forward_hook(lambda module, inputs, output: shapes.append(tuple(inputs[0].shape)))
    try:
        score_variants(encoder, genome, variants, scores=scores, context=CONTEXT, batch_bases=1)
    finally:
        handle.remove()
    assert set(shapes) == {(1, CONTEXT)}
    return len(shapes)


def test_passes_are_shared(encoder, genome, sequences):
    base = sequences["long"][70]
    alts = tuple("ACGT".replace(base, ""))
    record = [Variant("long", 70, base, alts)]
    apart = [Variant("long", 70, base, (alt,)) for alt in alts]
    unmasked = [name for name in SCORES if name not in ("llr", "delta_pll")]
    for given in (record, apart):
        assert count_rows(encoder, genome, given, "llr") == 2
        assert count_rows(encoder, genome, given, "llr_unmasked") == 2
        assert count_rows(encoder, genome, given, "delta_pll") == 2 * 4 * (1 + 3)
        assert count_rows(encoder, genome, given, ["llr", "delta_pll"]) == 2 + 2 * 4 * (1 + 3)
        assert count_rows(encoder, genome, given, unmasked) == 2 * (1 + 3)
    run = sequences["long"].index("AAAAAAA")
    deletions = [variant_at(sequences, "long", run - 1, 4, "GAA", "GA", "G")]  # of one to three of seven
    assert count_rows(encoder, genome, deletions, "delta_pll") == 2 * 4 * (1 + 3)


def test_memory_does_not_grow_with_the_number_of_variants(encoder, genome, sequences):
    """Log-odds of whole windows are let go when the ALTs that they are for have their scores."""
    alive = []

    def count(module, inputs, output):
        alive.append(sum(type(thing) is Outcome and thing.log_odds.size > 0 for thing in gc.get_objects()))

    variants = [variant_at(sequences, "long", place, 1, other(sequences["long"][place])) for place in range(30, 42)]
    handle = encoder.register_forward_hook(count)
    try:
        score_variants(encoder, genome, variants, scores="influence", context=CONTEXT, batch_bases=4 * CONTEXT)
    finally:
        handle.remove()
    assert len(alive) == 12
    assert max(alive) <= 16


@pytest.mark.parametrize("context", [CONTEXT, 16])
def test_what_does_not_fit_is_too_long(encoder, genome, sequences, context):
    longest = context // 2
    long = sequences["long"]
    given = [
        Variant("long", 60, long[60], (long[60] + "C" * (longest + 1),)),
        variant_at(sequences, "long", 60, longest + 2, long[60]),
        Variant("long", 60, long[60], (long[60] + other(long[61]) * 2,)),
    ]
    settings = {"context": context, "batch_bases": 1024}
    scores = score_variants(encoder, genome, given, **settings)
    assert scores.status.tolist() == ["too_long", "too_long", "scored"]
    longer = score_variants(encoder, genome, given, max_allele_length=context, **settings)
    assert longer.status.tolist() == ["scored", "scored", "scored"]
    shorter = score_variants(encoder, genome, given, max_allele_length=1, **settings)
    assert shorter.status.tolist() == ["too_long"] * 3


def test_a_repeat_or_a_contig_that_leaves_nothing_around_is_too_long(encoder, tmp_path):
    (tmp_path / "g.fa").write_text(f">run\n{'A' * 200}\n>tiny\nACGTACGTAC\n>one\nC\n")
    with Genome(tmp_path / "g.fa") as genome, Genome(tmp_path / "g.fa", circular=True) as ring:
        for opened in (genome, ring):
            given = [
                Variant("run", 90, "AA", ("A",)),  # could be any of 200, more than the window's 101
                Variant("tiny", 0, "ACGTACGTAC", ("A",)),  # nine bases have no counterpart in the one that is left
                Variant("one", 0, "C", ("CG",)),
            ]
            scores = score_variants(encoder, opened, given, **SETTINGS)
            assert scores.status.tolist() == ["too_long", "too_long", "scored"]
            assert np.isnan(scores["delta_pll"]).tolist() == [True, True, False]
        alone = score_variants(
            encoder, genome, [Variant("one", 0, "C", ("G",))], scores=["delta_pll", "influence"], **SETTINGS
        )
        assert alone.status.tolist() == ["too_long"]  # there is no other position to have influence on
        assert score_variants(encoder, genome, [Variant("one", 0, "C", ("G",))], **SETTINGS)["llr"].shape == (1,)


@pytest.mark.parametrize("is_reverse", [False, True])
def test_windows_of_alleles_at_the_ends(genome, is_reverse):
    """Where there is no middle, the longer part is in front on the strand that is read."""
    insertion = Change("long", 130, 130, "", "GG")
    window = allele_window(insertion, "", genome, 21, is_reverse=is_reverse)
    assert (window.start, window.before, window.after) == ((120, 10, 11) if is_reverse else (119, 11, 10))
    window = allele_window(insertion, "GG", genome, 20, is_reverse=is_reverse)
    assert (window.start, window.before, window.after, len(window)) == (121, 9, 9, 20)
    first = allele_window(Change("long", 2, 3, "A", "CC"), "CC", genome, 20, is_reverse=is_reverse)
    assert (first.start, first.before, first.after) == (0, 2, 16)
    last = allele_window(Change("long", 258, 259, "A", "CC"), "CC", genome, 20, is_reverse=is_reverse)
    assert (last.start, last.before, last.after) == (241, 17, 1)
    assert allele_window(insertion, "G" * 21, genome, 20, is_reverse=is_reverse) is None


@pytest.mark.realdata
def test_real_indels_score_as_their_normalized_forms(encoder, test_data):
    """Multi-allelic records of the 1000 Genomes project, split and left-aligned, against the records as they are."""
    folder = test_data / "human_chr20_b37"
    records = gs.read_variants(folder / "1000G_phase3_chr20_1000001-2000000_sites.vcf.gz")
    several = [
        variant
        for variant in records
        if len(variant.alts) > 1 and all(set(alt) <= set("ACGT") for alt in variant.alts) and len(variant.ref) > 1
    ][:12]
    with Genome(folder / "20.fa.gz") as genome:
        apart = [normalized.variant for normalized in gs.normalize_variants(several, genome)]
        scores = [
            score_variants(encoder, genome, given, scores=["delta_pll", "embedding_l2", "influence"], **SETTINGS)
            for given in (several, apart)
        ]
    assert len(apart) >= 24
    assert set(scores[0].status) == {"scored"}
    for name in scores[0].scores:
        np.testing.assert_allclose(scores[0][name], scores[1][name], atol=1e-5, rtol=1e-5)
