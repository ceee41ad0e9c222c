#!/usr/bin/env python3
"""Checks every #include of src/, include/ and tools/ against the direction of the house:

    base <- model <- {emit, compile, cubin, tuningdb, cuda, cpu} <- plan <- tuner <- engine <- c_api <- tools

(varmoe-bench, which checks what it runs, includes tests/oracle/ as well.)

A room may include itself, rooms of lower levels and the public headers; siblings do not include each other. Public headers
include the standard library and each other. Some headers belong to one room alone (OWNERS).

usage: include_direction.py REPOSITORY
Prints one line per offence; exit status 1 if there is any.
"""
import pathlib
import re
import sys

LEVELS = [["base"], ["model"], ["emit", "compile", "cubin", "tuningdb", "cuda", "cpu"], ["plan"], ["tuner"], ["engine"],
          ["c_api"], ["tools"]]
LEVEL_OF = {room: level for level, rooms in enumerate(LEVELS) for room in rooms}

# header pattern -> the only rooms that may include it
OWNERS = [
    (re.compile(r"cuda(Typedefs|_runtime.*|EGL|GL)?\.h"), {"cuda"}),
    (re.compile(r"nvrtc\.h"), {"compile"}),
    (re.compile(r"nlohmann/.*"), {"model", "tuningdb"}),
    (re.compile(r"spdlog/.*"), {"base"}),
    (re.compile(r"CLI/.*"), {"tools"}),
    (re.compile(r"xxhash\.h"), {"base"}),
]
# What kernels and host share (below kernels_src/), and the rooms that include it: parameter structs, how rows are cut into
# tiles and boxes, and how the router loads logits.
KERNEL_HEADERS = {"abi.cuh": {"emit", "plan"}, "schedule/row_tiles.cuh": {"plan"}, "moe/rank_key.cuh": {"plan"},
                  "moe/router_chunks.cuh": {"emit", "plan"}}

INCLUDE = re.compile(r'^[ \t]*#[ \t]*include[ \t]*([<"])([^>"\n]+)[>"]', re.M)
SOURCE_SUFFIXES = {".h", ".hpp", ".c", ".cc", ".cpp", ".inc"}


def sources(folder):
    if folder.is_dir():
        for path in sorted(folder.rglob("*")):
            if path.suffix in SOURCE_SUFFIXES and path.is_file():
                yield path


def check_room_file(room, path, root, offences):
    shown = path.relative_to(root)
    text = path.read_text(encoding="utf-8")
    for match in INCLUDE.finditer(text):
        bracket, name = match.groups()
        where = f"{shown}:{text.count(chr(10), 0, match.start()) + 1}"
        for pattern, owners in OWNERS:
            if pattern.fullmatch(name) and room not in owners:
                offences.append(f"{where}: <{name}> belongs to {', '.join(sorted(owners))} alone")
        if bracket == "<":
            if name.startswith("varmoe/") or name.split("/")[0] in LEVEL_OF and "/" in name:
                offences.append(f'{where}: write "{name}" with quotes')
            continue
        first = name.split("/")[0]
        if "/" in name and (first == "varmoe" or room == "tools" and first == "oracle"):
            continue
        if room in KERNEL_HEADERS.get(name, ()):
            continue
        if "/" not in name or first not in LEVEL_OF:
            offences.append(f'{where}: "{name}" names no room: write "room/file.hpp" or "varmoe/file.hpp"')
        elif first != room and LEVEL_OF[first] >= LEVEL_OF[room]:
            kind = "a sibling" if LEVEL_OF[first] == LEVEL_OF[room] else "a higher room"
            offences.append(f'{where}: {room} includes {kind}: "{name}"')


def owned_headers_reached(name, root, memo):
    """Headers of OWNERS that including "room/file.hpp" includes as well, through any chain."""
    if name not in memo:
        memo[name] = set()
        path = root / "src" / name
        text = path.read_text(encoding="utf-8") if path.is_file() else ""
        for bracket, inner in INCLUDE.findall(text):
            if any(pattern.fullmatch(inner) for pattern, _ in OWNERS):
                memo[name].add(inner)
            if bracket == '"':
                memo[name] |= owned_headers_reached(inner, root, memo)
    return memo[name]


def check_reached_headers(room, path, root, memo, offences):
    """Including another room must not include what belongs to that room alone."""
    for bracket, name in INCLUDE.findall(path.read_text(encoding="utf-8")):
        if bracket == '"' and name.split("/")[0] != room:
            for header in sorted(owned_headers_reached(name, root, memo)):
                if not any(pattern.fullmatch(header) and room in owners for pattern, owners in OWNERS):
                    offences.append(f'{path.relative_to(root)}: "{name}" includes <{header}>, which is not for {room}')


def check_public_header(path, root, offences):
    shown = path.relative_to(root)
    text = path.read_text(encoding="utf-8")
    for match in INCLUDE.finditer(text):
        bracket, name = match.groups()
        where = f"{shown}:{text.count(chr(10), 0, match.start()) + 1}"
        if bracket == '"' and not name.startswith("varmoe/"):
            offences.append(f'{where}: a public header includes "{name}"')
        if bracket == "<" and ("/" in name or (name.endswith(".h") and name not in {"stddef.h", "stdint.h", "stdbool.h"})):
            offences.append(f"{where}: a public header includes <{name}>, which is not the standard library")


def offences_of(root):
    """All offences under a repository root, and how many files were read."""
    offences, count, memo = [], 0, {}
    src = root / "src"
    for folder in sorted(p for p in src.iterdir() if p.is_dir()):
        files = list(sources(folder))
        count += len(files)
        if files and folder.name not in LEVEL_OF:
            offences.append(f"src/{folder.name}: a folder that is no room")
            continue
        for path in files:
            check_room_file(folder.name, path, root, offences)
            check_reached_headers(folder.name, path, root, memo, offences)
    for path in sources(root / "tools"):
        if "examples" not in path.relative_to(root / "tools").parts:
            count += 1
            check_room_file("tools", path, root, offences)
            check_reached_headers("tools", path, root, memo, offences)
    for path in sources(root / "include"):
        count += 1
        check_public_header(path, root, offences)
    return offences, count


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    offences, count = offences_of(pathlib.Path(sys.argv[1]).resolve())
    for line in offences:
        print(line)
    print(f"{count} files, {len(offences)} offences")
    return 1 if offences or count == 0 else 0


if __name__ == "__main__":
    sys.exit(main())
