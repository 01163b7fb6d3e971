"""Logs are read from CSV, lines of JSON and event files of TensorBoard, which are made here byte by
byte, without TensorBoard and without the reader's code."""

import json
import struct

import numpy as np
import pytest

import memjax as mj


def write(tmp_path, text, name="log.csv"):
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


@pytest.mark.parametrize(
    ("text", "options"),
    [
        ("step,loss\n1,0.5\n2,0.25\n", {}),
        ("\ufeffLoss;Epoch\n0.5;1\n0.25;2\n", {}),
        ("1,0.5\n2,0.25\n", {}),
        ("1\t0.5\r\n\r\n2\t0.25\r\n", {}),
        ("a,b\n1,0.5\n2,0.25\n", {}),
        ("a,b,my loss\n1,9,0.5\n2,9,0.25\n", {}),
        ("val_loss,train_loss,_step\n7,0.5,1\n7,0.25,2\n", {}),
        ("x,y,z\n0.5,1,\n0.25,2,\n", {"steps": "y", "loss": "x"}),
        ("9,0.5,1\n9,0.25,2\n", {"steps": "2", "loss": "1"}),
        ("step,loss,val_loss\n1,0.5,\n1,,0.7\n2,0.25,\n2,,0.6\n", {}),
        ('"step", "train/loss"\n"1", 0.5\n2, 2.5e-1\n', {}),
    ],
)
def test_columns_are_found(tmp_path, text, options):
    steps, losses = mj.read_log(write(tmp_path, text), **options)
    np.testing.assert_array_equal(steps, [1, 2])
    np.testing.assert_array_equal(losses, [0.5, 0.25])


@pytest.mark.parametrize("name", ["log.jsonl", "log.txt"])
def test_lines_of_json_are_read(tmp_path, name):
    lines = [
        {"step": 1, "loss": 0.5, "lr": [1]},
        {"step": 1, "eval": 3.0},
        {"step": 2, "loss": 0.25},
    ]
    lines.append({"step": 3, "loss": None})
    text = "\n".join(json.dumps(line) for line in lines) + '\n\n{"step": 4, "loss": NaN}\n'
    steps, losses = mj.read_log(write(tmp_path, text, name))
    np.testing.assert_array_equal(steps, [1, 2, 4])
    np.testing.assert_array_equal(losses, [0.5, 0.25, np.nan])


def test_losses_that_are_not_finite_are_kept(tmp_path):
    _, losses = mj.read_log(write(tmp_path, "step,loss\n1,nan\n2,inf\n3,-Infinity\n4,1e5\n"))
    np.testing.assert_array_equal(losses, [np.nan, np.inf, -np.inf, 1e5])


@pytest.mark.parametrize(
    ("text", "options", "match"),
    [
        ("step,loss\n1,0.5\n2,x\n", {}, "line 3 must hold a number in column 'loss', got 'x'"),
        ("step,loss\n1,0.5\n\n,0.4\n", {}, "`path` line 4 must hold a number in column 'step'"),
        ("step,loss\n1,1_000\n", {}, "got '1_000'; correct it"),
        ("step,loss\n1,0.5\n2,0.5,3\n", {}, "`path` line 3 must have 2 cells, got 3"),
        ("step,loss\n1,0.5\n", {"loss": "lss"}, "must name a column, got 'lss'; did you mean"),
        ("step,loss\n1,0.5\n", {"steps": "t"}, "`steps` must name a column, got 't'"),
        ("step,a,b\n1,0.5,2\n", {}, "`loss` must be given, got None where columns are"),
        ("step,val_loss,b_loss\n1,0.5,2\n", {}, "`loss` must be given"),
        ("step\n1\n2\n", {}, "`path` must have a column of steps and one of losses"),
        ("", {}, "`path` must have a column of steps and one of losses"),
        ("step,loss\n1,\n2,\n", {}, "`loss` must name a column with numbers"),
        (b"\xff\xfe\x00\x01", {}, "`path` must be a text file"),
        (b"a\0b", {}, "`path` must be a text file"),
        ('{"step": 1, "loss": 2}\n{"step": 1\n', {}, "`path` line 2 must be an object of JSON"),
        ('{"step": 1, "loss": 2}\n[1]\n', {}, "`path` line 2 must be an object of JSON"),
        ('{"step": 1, "loss": true}\n', {}, "`path` line 1 must hold a number in column 'loss'"),
        ('{"step": 1, "loss": "a"}\n', {}, "`path` line 1 must hold a number in column 'loss'"),
        ('step,loss\n1,"0.5\n' + "9" * 200_000, {}, "`path` line 3 must hold cells"),
    ],
)  # fmt: skip
def test_bad_files_are_refused_with_the_line(tmp_path, text, options, match):
    with pytest.raises(ValueError, match=match) as caught:
        mj.read_log(write(tmp_path, text), **options)
    assert "\n" not in str(caught.value)


def test_what_is_no_file_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="`path` must be a file that exists"):
        mj.read_log(tmp_path / "missing.csv")
    with pytest.raises(IsADirectoryError, match="`path` must be a file, got the folder"):
        mj.read_log(tmp_path)


# --- Event files, in the wire format of Protocol Buffers ----------------------------------------


def varint(value):
    value %= 2**64
    out = b""
    while value > 127:
        out += bytes([value % 128 + 128])
        value //= 128
    return out + bytes([value])


def message(field, data):
    return varint(8 * field + 2) + varint(len(data)) + data


def number(field, value):
    return varint(8 * field) + varint(value)


def scalar(tag, value):
    return message(1, message(1, tag.encode()) + varint(8 * 2 + 5) + struct.pack("<f", value))


def tensor(tag, value, how):
    kind, shape = 2 if how == "double" else 1, message(2, b"")
    packed = struct.pack("<d" if how == "double" else "<f", value)
    data = {
        "content": message(4, packed),
        "packed": message(5, packed),
        "single": varint(8 * 5 + 5) + packed,
        "double": message(6, packed),
    }[how]
    # Metadata of the plugin come before, and are passed over.
    meta = message(9, message(1, message(1, b"scalars")))
    return message(1, message(1, tag.encode()) + meta + message(8, number(1, kind) + shape + data))


def record(step, *values):
    time = varint(8 * 1 + 1) + struct.pack("<d", 1.7e9)
    event = time + (number(2, step) if step else b"") + message(5, b"".join(values))
    return struct.pack("<Q", len(event)) + b"crc1" + event + b"crc2"


def version():
    event = varint(9) + struct.pack("<d", 1.7e9) + message(3, b"brain.Event:2")
    return struct.pack("<Q", len(event)) + b"crc1" + event + b"crc2"


EVENTS = "events.out.tfevents.1700000000.host"


def test_scalars_of_an_event_file_are_read(tmp_path):
    hows = ("content", "packed", "single", "double")
    data = version() + record(0, scalar("train/loss", 0.5), scalar("lr", 9.0))
    data += b"".join(record(300 + k, tensor("train/loss", 0.25, how)) for k, how in enumerate(hows))
    data += record(2**40, scalar("val", 1.0), scalar("train/loss", np.nan))
    whole = write(tmp_path, data, EVENTS)
    for path in (
        whole,
        write(tmp_path, data + record(9, scalar("train/loss", 1))[:-3], EVENTS + "2"),
    ):
        steps, losses = mj.read_log(path)
        np.testing.assert_array_equal(steps, [0, 300, 301, 302, 303, 2**40])
        np.testing.assert_array_equal(losses, [0.5, 0.25, 0.25, 0.25, 0.25, np.nan])
    assert mj.read_log(whole, loss="lr")[1].tolist() == [9.0]


@pytest.mark.parametrize(
    ("data", "options", "match"),
    [
        (version(), {}, "`path` must hold scalars, got none"),
        (b"", {}, "`path` must hold scalars"),
        (version() + record(1, scalar("a", 1), scalar("b", 1)), {}, "`loss` must be given"),
        (
            version() + record(1, scalar("a", 1)),
            {"loss": "b"},
            "`loss` must name a column, got 'b'",
        ),
        (version() + record(1, scalar("a", 1)), {"steps": "b"}, "`steps` must be None"),
        (b"step,loss\n1,0.5\n2,0.5\n", {}, "`path` must be an event file of TensorBoard"),
        (struct.pack("<Q", 3) + b"crc1\xff\xff\xffcrc2", {}, "no event at byte 0"),
        (struct.pack("<Q", 2) + b"crc1\x0a\x7fcrc2", {}, "no event at byte 0"),
        (struct.pack("<Q", 1) + b"crc1\x0bcrc2", {}, "no event at byte 0"),
    ],
)
def test_files_that_are_no_event_files_are_refused(tmp_path, data, options, match):
    with pytest.raises(ValueError, match=match):
        mj.read_log(write(tmp_path, data, EVENTS), **options)
