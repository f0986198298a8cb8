/*
 * Bytes of FASTA lines to letters, token ids and soft mask, in one pass: line ends are left out on the way.
 *
 * Compiled once for each of the variants of setup.py; genosparse/readers/_lines.py calls it, and says the same in numpy.
 * Nothing here explains what is wrong: where anything is, the caller goes over the same bytes in Python.
 */

#define _POSIX_C_SOURCE 200809L
#define _FILE_OFFSET_BITS 64

#include <errno.h>
#include <stdint.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

#ifdef __AVX2__
#include <immintrin.h>
#endif

#define JOIN_(a, b) a##_##b
#define JOIN(a, b) JOIN_(a, b)
#define NAMED(name) JOIN(genosparse_##name, VARIANT)

enum { REFUSED = 255, PIECE_BYTES = 1 << 16 };

/* Where the letters of a contig are in its file, as in a line of a .fai, and the token ids of letters. */
struct layout {
    int64_t offset;     /* of the first base */
    int64_t line_bases; /* letters in a line */
    int64_t line_width; /* bytes in a line, its end included */
    uint8_t codes[32];  /* token id by the five low bits of a letter; REFUSED where that is no nucleotide code */
};

/* What is written; each may be NULL. */
struct outputs {
    uint8_t *tokens, *soft_mask, *letters;
};

static int64_t byte_offset(const struct layout *layout, int64_t position0)
{
    return layout->offset + position0 / layout->line_bases * layout->line_width + position0 % layout->line_bases;
}

/* Letters have the bits 01 above the five that tell them apart, and 0x20 in lower case. */
static inline int encode_one(const uint8_t *codes, uint8_t letter, uint8_t *token)
{
    *token = codes[letter & 31];
    return (letter & 0xC0) == 0x40 && *token != REFUSED;
}

#ifdef __AVX2__
enum { LANES = 32 };

struct vectors {
    __m256i low, high; /* codes of letters whose fifth bit is 0, and 1; in both halves, as pshufb takes them */
};

static struct vectors load_codes(const uint8_t *codes)
{
    return (struct vectors){
        _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)codes)),
        _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)(codes + 16))),
    };
}

/* Returns the bytes' faults: the top bit is set where a letter is no nucleotide code. */
static inline __m256i encode_lanes(const struct vectors *codes, const uint8_t *letters, uint8_t *tokens, uint8_t *mask)
{
    const __m256i x = _mm256_loadu_si256((const __m256i *)letters);
    const __m256i index = _mm256_and_si256(x, _mm256_set1_epi8(15));
    const __m256i token = _mm256_blendv_epi8(
        _mm256_shuffle_epi8(codes->low, index), _mm256_shuffle_epi8(codes->high, index), _mm256_slli_epi16(x, 3));
    _mm256_storeu_si256((__m256i *)tokens, token);
    if (mask)
        _mm256_storeu_si256((__m256i *)mask, _mm256_and_si256(_mm256_srli_epi16(x, 5), _mm256_set1_epi8(1)));
    /* x ^ 0x40 has neither of the two top bits where x is 01......; the shift brings the lower one to the top. */
    const __m256i above = _mm256_and_si256(_mm256_xor_si256(x, _mm256_set1_epi8(0x40)), _mm256_set1_epi8((char)0xC0));
    return _mm256_or_si256(token, _mm256_or_si256(above, _mm256_slli_epi16(above, 1)));
}
#endif

/* Letters that stand together in a line. Returns whether all are nucleotide codes. */
static inline int take_letters(const struct layout *layout, const uint8_t *letters, int64_t size, struct outputs to)
{
    if (to.letters)
        memcpy(to.letters, letters, (size_t)size);
    if (!to.tokens)
        return 1;
#ifdef __AVX2__
    if (size >= LANES) {
        const struct vectors codes = load_codes(layout->codes);
        __m256i faults = _mm256_setzero_si256();
        int64_t at = 0;
        for (; at + LANES <= size; at += LANES)
            faults = _mm256_or_si256(
                faults, encode_lanes(&codes, letters + at, to.tokens + at, to.soft_mask ? to.soft_mask + at : NULL));
        if (at < size) { /* some twice over, instead of a loop over the rest */
            at = size - LANES;
            faults = _mm256_or_si256(
                faults, encode_lanes(&codes, letters + at, to.tokens + at, to.soft_mask ? to.soft_mask + at : NULL));
        }
        return !_mm256_movemask_epi8(faults);
    }
#endif
    int fine = 1;
    for (int64_t at = 0; at < size; at++) {
        fine &= encode_one(layout->codes, letters[at], to.tokens + at);
        if (to.soft_mask)
            to.soft_mask[at] = letters[at] >> 5 & 1;
    }
    return fine;
}

static inline int is_line_end(uint8_t byte, int is_last)
{
    return is_last ? byte == '\n' : byte == ' ' || (byte >= '\t' && byte <= '\r');
}

/*
 * Bytes that begin at a column of a line, over as many lines as they are; what is to be written and the column move on.
 * Returns whether all are what they must be.
 */
static int take_bytes(
    const struct layout *layout, const uint8_t *bytes, int64_t size, int64_t *column, struct outputs *to)
{
    const int64_t line_bases = layout->line_bases, line_width = layout->line_width;
    const uint8_t *end = bytes + size;
    int64_t at = *column;
    int fine = 1;
    while (bytes < end) {
        if (at < line_bases) {
            const int64_t rest = end - bytes, count = line_bases - at < rest ? line_bases - at : rest;
            fine &= take_letters(layout, bytes, count, *to);
            to->tokens = to->tokens ? to->tokens + count : NULL;
            to->soft_mask = to->soft_mask ? to->soft_mask + count : NULL;
            to->letters = to->letters ? to->letters + count : NULL;
            bytes += count;
            at += count;
        }
        for (; at >= line_bases && at < line_width && bytes < end; at++)
            fine &= is_line_end(*bytes++, at == line_width - 1);
        if (at == line_width)
            at = 0;
    }
    *column = at;
    return fine;
}

/*
 * Bases [start, end) of a contig from its file. Returns 1, or 0 where they cannot be read or are not what they must be;
 * what is written is then of no use.
 */
int NAMED(bases_of_file)(
    int file, const struct layout *layout, int64_t start, int64_t end, uint8_t *tokens, uint8_t *soft_mask,
    uint8_t *letters)
{
    struct outputs to = {tokens, soft_mask, letters};
    uint8_t piece[PIECE_BYTES];
    int64_t column = start % layout->line_bases;
    int64_t at = byte_offset(layout, start);
    const int64_t last = byte_offset(layout, end - 1) + 1;
    while (at < last) {
        const size_t wanted = (size_t)(last - at < PIECE_BYTES ? last - at : PIECE_BYTES);
        const ssize_t count = pread(file, piece, wanted, (off_t)at);
        if (count < 0 && errno == EINTR)
            continue;
        if (count <= 0 || !take_bytes(layout, piece, count, &column, &to))
            return 0;
        at += count;
    }
    return 1;
}

/* The same from bytes, which are those from the first base to the last one. */
int NAMED(bases_of_bytes)(
    const uint8_t *bytes, const struct layout *layout, int64_t start, int64_t end, uint8_t *tokens, uint8_t *soft_mask,
    uint8_t *letters)
{
    struct outputs to = {tokens, soft_mask, letters};
    int64_t column = start % layout->line_bases;
    const int64_t size = byte_offset(layout, end - 1) + 1 - byte_offset(layout, start);
    return take_bytes(layout, bytes, size, &column, &to);
}

/* The size of struct layout, by which the caller knows its own sources; 0 where the processor cannot run the variant. */
int64_t NAMED(fasta_layout_size)(void)
{
#ifdef __AVX2__
    if (!__builtin_cpu_supports("avx2"))
        return 0;
#endif
    return sizeof(struct layout);
}
