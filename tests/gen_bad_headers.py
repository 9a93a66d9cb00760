#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Write the safetensors fixtures tests/data/bad and tests/data/good.

    gen_bad_headers.py [DIRECTORY]      (default: data beside this script)

Every case is a small file, and a line of EXPECTED in its directory: what the
parser must say of it. tests/data/README describes them.
"""
import os
import struct
import sys

U8 = '{"dtype":"U8","shape":[1],"data_offsets":[0,1]}'


def raw(length, text, data=b""):
    """A file that states `length` for its header, whatever text is."""
    if isinstance(text, str):
        text = text.encode()
    return struct.pack("<Q", length) + text + data


def st(text, data=0):
    """A file with this header and so many bytes of data."""
    if isinstance(text, str):
        text = text.encode()
    return raw(len(text), text, bytes(range(data)))


def one(body, data=1):
    return st('{"a":' + body + "}", data)


def entry(dtype='"U8"', shape="[1]", offsets="[0,1]"):
    return '{"dtype":%s,"shape":%s,"data_offsets":%s}' % (dtype, shape, offsets)


def extra(value):
    """A member that readers skip, but must understand."""
    return one('{"dtype":"U8","shape":[1],"data_offsets":[0,1],"x":' + value + "}")


NOTST, LIMIT = "EQ_ENOTST", "EQ_ELIMIT"

# name: (bytes, code, part of the message)
BAD = {
    # the length
    "empty_file": (b"", NOTST, "shorter than 8 bytes"),
    "seven_bytes": (b"\2\0\0\0\0\0\0", NOTST, "shorter than 8 bytes"),
    "length_zero": (raw(0, ""), NOTST, "byte 0 of the header: expected an object"),
    "length_beyond_file": (raw(3, "{}"), NOTST, "beyond the end of the file"),
    "length_over_100m": (raw(100000001, "{}"), NOTST, "100000001 bytes, more than 100000000"),
    "length_2_pow_63": (raw(1 << 63, "{}"), NOTST, "more than 100000000"),
    "length_all_ones": (raw(2**64 - 1, "{}"), NOTST, "more than 100000000"),
    "length_too_short": (raw(1, "{}"), NOTST, "byte 1 of the header: expected a string"),
    # not a JSON object
    "byte_order_mark": (st("\ufeff{}"), NOTST, "byte 0 of the header: expected an object"),
    "top_array": (st("[]"), NOTST, "expected an object"),
    "top_null": (st("null"), NOTST, "expected an object"),
    "top_string": (st('"a"'), NOTST, "expected an object"),
    "unclosed": (st("{"), NOTST, "byte 1 of the header: expected a string"),
    "unclosed_entry": (st('{"a":' + U8, 1), NOTST, "expected ',' or '}'"),
    "trailing_text": (st("{} x"), NOTST, "byte 3 of the header: text after the end"),
    "trailing_nul": (st("{}\0"), NOTST, "byte 2 of the header: text after the end"),
    "second_object": (st("{}{}"), NOTST, "text after the end"),
    "vertical_tab": (st("\x0b{}"), NOTST, "expected an object"),
    "comment": (st("{/**/}"), NOTST, "expected a string"),
    "unquoted_key": (st("{a:" + U8 + "}", 1), NOTST, "expected a string"),
    "single_quotes": (st("{'a':" + U8 + "}", 1), NOTST, "expected a string"),
    "no_colon": (st('{"a" ' + U8 + "}", 1), NOTST, "expected ':'"),
    "no_comma": (st('{"a":%s "b":%s}' % (U8, U8), 1), NOTST, "expected ',' or '}'"),
    "trailing_comma": (st('{"a":' + U8 + ",}", 1), NOTST, "trailing comma"),
    "leading_comma": (st('{,"a":' + U8 + "}", 1), NOTST, "expected a string"),
    "number_key": (st("{1:" + U8 + "}", 1), NOTST, "expected a string"),
    # UTF-8 and strings
    "utf8_lone_continuation": (st(b'{"\x80":' + U8.encode() + b"}", 1), NOTST,
                               "byte 2 of the header: not UTF-8"),
    "utf8_overlong": (st(b'{"\xc0\xaf":' + U8.encode() + b"}", 1), NOTST, "not UTF-8"),
    "utf8_overlong_3": (st(b'{"\xe0\x9f\xbf":' + U8.encode() + b"}", 1), NOTST, "not UTF-8"),
    "utf8_overlong_4": (st(b'{"\xf0\x8f\xbf\xbf":' + U8.encode() + b"}", 1), NOTST, "not UTF-8"),
    "utf8_surrogate": (st(b'{"\xed\xa0\x80":' + U8.encode() + b"}", 1), NOTST, "not UTF-8"),
    "utf8_above_10ffff": (st(b'{"\xf4\x90\x80\x80":' + U8.encode() + b"}", 1), NOTST,
                          "not UTF-8"),
    "utf8_cut": (st(b"{}\xe2\x82"), NOTST, "byte 2 of the header: not UTF-8"),
    "latin1": (st('{"caf\u00e9":{}}'.encode("latin-1")), NOTST, "not UTF-8"),
    "utf16": (st("{}".encode("utf-16-le")), NOTST, "byte 1 of the header: expected a string"),
    "control_character": (st('{"a\x1f":' + U8 + "}", 1), NOTST, "control character"),
    "newline_in_name": (st('{"a\n":' + U8 + "}", 1), NOTST, "control character"),
    "bad_escape": (st('{"\\x41":' + U8 + "}", 1), NOTST, "bad escape"),
    "escape_nul": (st(b'{"\\\0":' + U8.encode() + b"}", 1), NOTST, "bad escape"),
    "escape_short": (st('{"\\u12":' + U8 + "}", 1), NOTST, "bad escape"),
    "escape_at_end": (st('{"\\'), NOTST, "bad escape"),
    "lone_high_surrogate": (st('{"\\ud83d":' + U8 + "}", 1), NOTST, "bad escape"),
    "lone_low_surrogate": (st('{"\\udc00":' + U8 + "}", 1), NOTST, "bad escape"),
    "high_high_surrogate": (st('{"\\ud83d\\ud83d":' + U8 + "}", 1), NOTST, "bad escape"),
    "high_surrogate_at_end": (st('{"\\ud83d\\u'), NOTST, "bad escape"),
    "unclosed_name": (st('{"a'), NOTST, "byte 3 of the header: string without end"),
    # what readers skip must be JSON too
    "skipped_number_range": (extra("1e999"), NOTST, "number out of range"),
    "skipped_1e309": (extra("1e309"), NOTST, "number out of range"),
    "skipped_minus_1e400": (extra("[1,-0.1e401]"), NOTST, "number out of range"),
    "skipped_leading_zero": (extra("007"), NOTST, "leading zero"),
    "skipped_bare_fraction": (extra("1."), NOTST, "bad number"),
    "skipped_bare_exponent": (extra("1e+"), NOTST, "bad number"),
    "skipped_infinity": (extra("Infinity"), NOTST, "expected a value"),
    "skipped_nan": (extra("NaN"), NOTST, "expected a value"),
    "skipped_word": (extra("nul"), NOTST, "expected a value"),
    "skipped_mismatch": (extra("[1}"), NOTST, "expected ',' or ']'"),
    "skipped_surrogate": (extra('"\\udfff"'), NOTST, "bad escape"),
    "skipped_deep": (extra("[" * 126 + "]" * 126), NOTST, "nested too deeply"),
    "skipped_very_deep": (extra("[" * 50000), NOTST, "nested too deeply"),
    "skipped_deep_objects": (extra('{"a":' * 126 + "0" + "}" * 126), NOTST,
                             "nested too deeply"),
    # an entry
    "entry_null": (one("null"), NOTST, "tensor 'a': entry: expected an object"),
    "entry_string": (one('"x"'), NOTST, "tensor 'a': entry: expected an object"),
    "entry_empty": (one("{}"), NOTST, "tensor 'a': no dtype"),
    "entry_empty_array": (one("[]"), NOTST, "tensor 'a': no dtype"),
    "entry_short_array": (one('["U8",[1]]'), NOTST, "tensor 'a': no data_offsets"),
    "entry_long_array": (one('["U8",[1],[0,1],0]'), NOTST, "more than three values"),
    "no_dtype": (one('{"shape":[1],"data_offsets":[0,1]}'), NOTST, "no dtype"),
    "no_shape": (one('{"dtype":"U8","data_offsets":[0,1]}'), NOTST, "no shape"),
    "no_offsets": (one('{"dtype":"U8","shape":[1]}'), NOTST, "no data_offsets"),
    "dtype_twice": (one('{"dtype":"U8",' + U8[1:]), NOTST, "dtype twice"),
    "shape_twice": (one('{"shape":[1],' + U8[1:]), NOTST, "shape twice"),
    "offsets_twice": (one('{"data_offsets":[0,1],' + U8[1:]), NOTST, "data_offsets twice"),
    "twice_by_escape": (one('{"dtyp\\u0065":"U8",' + U8[1:]), NOTST, "dtype twice"),
    "field_with_nul": (one('{"dtype\\u0000":"U8","shape":[1],"data_offsets":[0,1]}'), NOTST,
                       "no dtype"),
    # dtype
    "dtype_unknown": (one(entry('"BF17"')), NOTST, "unknown dtype 'BF17'"),
    "dtype_lower_case": (one(entry('"u8"')), NOTST, "unknown dtype 'u8'"),
    "dtype_blank": (one(entry('"U8 "')), NOTST, "unknown dtype 'U8 '"),
    "dtype_with_nul": (one(entry('"U8\\u0000"')), NOTST, "unknown dtype 'U8\\u0000'"),
    "dtype_long": (one(entry('"F8_E4M3FNUZ' + "Z" * 200 + '"')), NOTST, "ZZZ...'"),
    "dtype_number": (one(entry("4")), NOTST, "dtype: expected a string"),
    "dtype_null": (one(entry("null")), NOTST, "dtype: expected a string"),
    "dtype_empty_object": (one(entry("{}")), NOTST, "dtype: empty object"),
    "dtype_two_members": (one(entry('{"U8":null,"I8":null}')), NOTST, "more than one member"),
    "dtype_member_not_null": (one(entry('{"U8":0}')), NOTST, "dtype: expected null"),
    # shape
    "shape_null": (one(entry(shape="null")), NOTST, "shape: expected an array"),
    "shape_object": (one(entry(shape='{"0":1}')), NOTST, "shape: expected an array"),
    "shape_number": (one(entry(shape="1")), NOTST, "shape: expected an array"),
    "shape_string": (one(entry(shape='["1"]')), NOTST, "shape: expected a number"),
    "shape_nested": (one(entry(shape="[[1]]")), NOTST, "shape: expected a number"),
    "shape_float": (one(entry(shape="[1.0]")), NOTST, "not an unsigned 64-bit integer"),
    "shape_exponent": (one(entry(shape="[1e0]")), NOTST, "not an unsigned 64-bit integer"),
    "shape_negative": (one(entry(shape="[-1]")), NOTST, "not an unsigned 64-bit integer"),
    "shape_minus_zero": (one(entry(shape="[-0]", offsets="[0,0]"), 0), NOTST,
                         "not an unsigned 64-bit integer"),
    "shape_2_pow_64": (one(entry(shape="[18446744073709551616,0]", offsets="[0,0]"), 0), NOTST,
                       "not an unsigned 64-bit integer"),
    "shape_plus": (one(entry(shape="[+1]")), NOTST, "shape: expected a number"),
    "shape_leading_zero": (one(entry(shape="[01]")), NOTST, "leading zero"),
    "shape_trailing_comma": (one(entry(shape="[1,]")), NOTST, "trailing comma"),
    "shape_65_dims": (one(entry(shape="[" + ",".join(["1"] * 65) + "]")), LIMIT,
                      "more than 64 dimensions"),
    # sizes
    "size_product_overflow": (one(entry(shape="[4294967296,4294967296]")), NOTST,
                              "overflows 64 bits"),
    "size_bits_overflow": (one(entry(shape="[2305843009213693952]")), NOTST,
                           "overflows 64 bits"),
    "size_overflow_before_zero": (one(entry(shape="[4294967296,4294967296,0]",
                                            offsets="[0,0]"), 0), NOTST, "overflows 64 bits"),
    "size_wraps_to_match": (one(entry('"U64"', "[2305843009213693953]", "[0,8]"), 8), NOTST,
                            "overflows 64 bits"),
    "size_too_small": (one(entry('"F32"', "[1]", "[0,1]")), NOTST,
                       "shape and dtype make 4 bytes, data_offsets 1"),
    "size_too_large": (one(entry('"U8"', "[1]", "[0,2]"), 2), NOTST,
                       "shape and dtype make 1 bytes, data_offsets 2"),
    "size_scalar_empty": (one(entry('"U8"', "[]", "[0,0]"), 0), NOTST,
                          "make 1 bytes, data_offsets 0"),
    "half_byte": (one(entry('"F4"', "[3]", "[0,2]"), 2), NOTST, "not a whole number of bytes"),
    "quarter_byte": (one(entry('"F6_E2M3"', "[3]", "[0,2]"), 2), NOTST,
                     "not a whole number of bytes"),
    # offsets
    "offsets_one": (one(entry(offsets="[0]")), NOTST, "data_offsets: not two numbers"),
    "offsets_three": (one(entry(offsets="[0,1,1]")), NOTST, "data_offsets: not two numbers"),
    "offsets_object": (one(entry(offsets='{"0":0,"1":1}')), NOTST, "expected an array"),
    "offsets_float": (one(entry(offsets="[0,1.0]")), NOTST, "not an unsigned 64-bit integer"),
    "offsets_reversed": (one(entry(offsets="[1,0]")), NOTST, "end before begin"),
    "offsets_huge": (one(entry(offsets="[0,18446744073709551615]")), NOTST,
                     "data_offsets 18446744073709551615"),
    "offsets_beyond_file": (one(entry(shape="[2]", offsets="[0,2]"), 1), NOTST,
                            "take 2 bytes, the file has 1"),
    "hole_at_begin": (one(entry(offsets="[1,2]"), 2), NOTST,
                      "begins at 1, leaves a hole after 0"),
    "hole_between": (st('{"a":%s,"b":%s}' % (entry(offsets="[0,1]"), entry(offsets="[2,3]")), 3),
                     NOTST, "tensor 'b': begins at 2, leaves a hole after 1"),
    "hole_at_end": (one(U8, 2), NOTST, "take 1 bytes, the file has 2"),
    "data_without_tensors": (st("{}", 1), NOTST, "take 0 bytes, the file has 1"),
    "overlap": (st('{"a":%s,"b":%s}' % (entry(shape="[4]", offsets="[0,4]"),
                                        entry(shape="[4]", offsets="[2,6]")), 6),
                NOTST, "tensor 'b': begins at 2, overlaps the one before"),
    "same_place": (st('{"a":%s,"b":%s}' % (U8, U8), 1), NOTST, "overlaps the one before"),
    "empty_tensor_inside": (st('{"a":%s,"b":%s}' % (
        entry(shape="[4]", offsets="[0,4]"), entry(shape="[0]", offsets="[2,2]")), 4),
        NOTST, "tensor 'b': begins at 2, overlaps"),
    # names
    "name_twice": (st('{"a":%s,"a":%s}' % (U8, U8), 1), NOTST, "tensor 'a': occurs twice"),
    "name_twice_apart": (st('{"a":%s,"b":%s,"a":%s}' % (
        entry(offsets="[0,1]"), entry(offsets="[1,2]"), entry(offsets="[2,3]")), 3),
        NOTST, "tensor 'a': occurs twice"),
    "name_twice_by_escape": (st('{"a":%s,"\\u0061":%s}' % (
        entry(offsets="[0,1]"), entry(offsets="[1,2]")), 2), NOTST, "occurs twice"),
    "name_over_65536": (st('{"' + "n" * 65537 + '":' + U8 + "}", 1), LIMIT,
                        "longer than 65536 bytes"),
    # __metadata__
    "metadata_number": (st('{"__metadata__":{"a":1}}'), NOTST,
                        "__metadata__: expected a string"),
    "metadata_null_value": (st('{"__metadata__":{"a":null}}'), NOTST,
                            "__metadata__: expected a string"),
    "metadata_nested": (st('{"__metadata__":{"a":{"b":"c"}}}'), NOTST,
                        "__metadata__: expected a string"),
    "metadata_array": (st('{"__metadata__":[]}'), NOTST, "__metadata__: expected an object"),
    "metadata_tensor": (st('{"__metadata__":' + U8 + "}", 1), NOTST,
                        "__metadata__: expected a string"),
    "metadata_twice": (st('{"__metadata__":{},"__metadata__":{}}'), NOTST,
                       "__metadata__ twice"),
    "metadata_twice_null": (st('{"__metadata__":null,"__metadata\\u005f_":null}'), NOTST,
                            "__metadata__ twice"),
    "metadata_nul_name": (st('{"__metadata__\\u0000":{}}'), NOTST,
                          "tensor '__metadata__\\u0000': no dtype"),
}

MANY = 40
ALL_DTYPES = [("BOOL", 8), ("F4", 4), ("F6_E2M3", 6), ("F6_E3M2", 6), ("U8", 8), ("I8", 8),
              ("F8_E5M2", 8), ("F8_E4M3", 8), ("F8_E8M0", 8), ("F8_E4M3FNUZ", 8),
              ("F8_E5M2FNUZ", 8), ("I16", 16), ("U16", 16), ("F16", 16), ("BF16", 16),
              ("I32", 32), ("U32", 32), ("F32", 32), ("C64", 64), ("F64", 64), ("I64", 64),
              ("U64", 64)]


def all_dtypes():
    parts, expected, at = [], [], 0
    for name, bits in ALL_DTYPES:
        size = 4 * bits // 8
        parts.append('"t_%s":%s' % (name, entry('"%s"' % name, "[2,2]",
                                               "[%d,%d]" % (at, at + size))))
        expected.append("t_%s %s 2x2 %d %d" % (name, name, at, at + size))
        at += size
    return st("{" + ",".join(parts) + "}", at), expected


def reversed_order():
    parts, expected = [], []
    for i in range(MANY):
        parts.append('"n%02d":%s' % (i, entry(offsets="[%d,%d]" % (i, i + 1))))
        expected.append("n%02d U8 1 %d %d" % (i, i, i + 1))
    return st("{" + ",".join(reversed(parts)) + "}", MANY), expected


# name: (bytes, tensors in order: "NAME DTYPE DIMxDIM BEGIN END"; bytes of a name
# other than printable ASCII, ' ', '%' and ';' as %XX; "-" for rank 0)
A = ["a U8 1 0 1"]
GOOD = {
    "no_tensors": (st("{}"), []),
    "leading_space": (st(" \t\r\n" * 10 + '{"a":' + U8 + "}", 1), A),
    "padded_to_8": (st('{"a":' + U8 + "}" + " " * 5, 1), A),
    "padded_with_newlines": (st('{"a":' + U8 + "}\n\t\r \n", 1), A),
    "blanks_everywhere": (st(' { "a" : { "dtype" : "U8" , "shape" : [ 1 ] , '
                             '"data_offsets" : [ 0 , 1 ] } } ', 1), A),
    "any_order_of_fields": (one('{"data_offsets":[0,1],"shape":[1],"dtype":"U8"}'), A),
    "array_entry": (one('["U8",[1],[0,1]]'), A),
    "dtype_object": (one(entry('{"U8":null}')), A),
    "escaped_everything": (st('{"\\u0061":{"\\u0064type":"\\u00558","sh\\u0061pe":[1],'
                              '"data_offset\\u0073":[0,1]}}', 1), A),
    "skipped_members": (one('{"x":[{},[],"",-1.5e-7,true,false,null,{"dtype":1}],"x":1,'
                            '"dtype":"U8","shape":[1],"data_offsets":[0,1]}'), A),
    "skipped_deep": (extra("[" * 125 + "]" * 125), A),
    "skipped_large_numbers": (extra("[1e308,-1e308,18446744073709551616,0e999,1e-999,-0]"), A),
    "rank_0": (one(entry(shape="[]")), ["a U8 - 0 1"]),
    "zero_size": (one(entry(shape="[0]", offsets="[0,0]"), 0), ["a U8 0 0 0"]),
    "zero_times_huge": (one(entry(shape="[0,18446744073709551615,3]", offsets="[0,0]"), 0),
                        ["a U8 0x18446744073709551615x3 0 0"]),
    "huge_times_zero": (one(entry(shape="[18446744073709551615,0]", offsets="[0,0]"), 0),
                        ["a U8 18446744073709551615x0 0 0"]),
    "beyond_double": (one(entry(shape="[0,9007199254740993]", offsets="[0,0]"), 0),
                      ["a U8 0x9007199254740993 0 0"]),
    "zero_size_ties": (st('{"b":%s,"a":%s,"c":%s,"z":%s}' % (
        entry(shape="[0]", offsets="[0,0]"), entry(shape="[0]", offsets="[0,0]"), U8,
        entry(shape="[0]", offsets="[1,1]")), 1),
        ["a U8 0 0 0", "b U8 0 0 0", "c U8 1 0 1", "z U8 0 1 1"]),
    "sub_byte": (st('{"f4":%s,"f6":%s}' % (entry('"F4"', "[2,3]", "[0,3]"),
                                          entry('"F6_E3M2"', "[4]", "[3,6]")), 6),
                 ["f4 F4 2x3 0 3", "f6 F6_E3M2 4 3 6"]),
    "dims_64": (one(entry(shape="[" + ",".join(["1"] * 64) + "]")),
                ["a U8 " + "x".join(["1"] * 64) + " 0 1"]),
    "name_empty": (st('{"":' + U8 + "}", 1), [" U8 1 0 1"]),
    "name_unicode": (st('{"\u03bb.\U0001f600":' + U8 + "}", 1), ["%CE%BB.%F0%9F%98%80 U8 1 0 1"]),
    "name_surrogates": (st('{"\\ud83d\\uDE00":' + U8 + "}", 1), ["%F0%9F%98%80 U8 1 0 1"]),
    "name_with_nul": (st('{"a\\u0000b":%s,"a":%s,"a\\u0000":%s}' % (
        entry(offsets="[0,1]"), entry(offsets="[1,2]"), entry(offsets="[2,3]")), 3),
        ["a%00b U8 1 0 1", "a U8 1 1 2", "a%00 U8 1 2 3"]),
    "name_escapes": (st('{"\\"\\\\\\/\\b\\f\\n\\r\\t\x7f":' + U8 + "}", 1),
                     ["\"\\/%08%0C%0A%0D%09%7F U8 1 0 1"]),
    "name_65536": (st('{"' + "n" * 65536 + '":' + U8 + "}", 1),
                   ["n" * 65536 + " U8 1 0 1"]),
    "metadata": (st('{"__metadata__":{"format":"pt","":""},"a":' + U8 + "}", 1), A),
    "metadata_null": (st('{"a":' + U8 + ',"__metadata__":null}', 1), A),
    "metadata_key_twice": (st('{"__metadata__":{"k":"1","k":"2"}}'), []),
    "metadata_like_name": (st('{"__metadata__ ":' + U8 + "}", 1), ["__metadata__%20 U8 1 0 1"]),
    "all_dtypes": all_dtypes(),
    "reversed_order": reversed_order(),
}


def write(path, data):
    with open(path, "wb") as f:
        f.write(data)


def write_set(directory, cases, lines):
    os.makedirs(directory, exist_ok=True)
    for name in os.listdir(directory):
        if name.endswith(".safetensors") and name[:-12] not in cases:
            os.remove(os.path.join(directory, name))
    for name, case in cases.items():
        write(os.path.join(directory, name + ".safetensors"), case[0])
    write(os.path.join(directory, "EXPECTED"), "".join(lines).encode())


def main():
    here = os.path.dirname(os.path.abspath(__file__))
    top = sys.argv[1] if len(sys.argv) > 1 else os.path.join(here, "data")
    write_set(os.path.join(top, "bad"), BAD,
              ["%s.safetensors\t%s\t%s\n" % (n, BAD[n][1], BAD[n][2]) for n in sorted(BAD)])
    write_set(os.path.join(top, "good"), GOOD,
              ["%s.safetensors\t%s\n" % (n, ";".join(GOOD[n][1])) for n in sorted(GOOD)])


if __name__ == "__main__":
    main()
