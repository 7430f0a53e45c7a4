"""Files that number classes, as people have them: lines, and every kind of JSON that the field's tools write."""

import os

import pytest

from pipeline.data import class_numbers
from pipeline.utils.errors import InputError


@pytest.fixture
def read(tmp_path):
    """A function: text or bytes -> what is read from a file of it."""

    def read(content):
        path = tmp_path / "classes.txt"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return class_numbers.read(str(path))

    return read


@pytest.mark.parametrize(
    "content",
    [
        "cat\t3\nsea lion\t0\n",
        "\ufeff# of our own\r\n\r\ncat, 3\r\nsea lion,0",
        "cat 3\nsea lion   0\n",
        '{"cat": 3, "sea lion": 0}',
        '{"0": ["sea lion", "Otariinae"], "3": ["cat", "Felis catus"]}',
        '{"0": "sea lion", "3": "cat"}',
    ],
    ids=["tabs", "commas", "spaces", "class_to_idx", "imagenet_class_index", "id2label"],
)
def test_every_form_says_the_same(read, content):
    assert read(content) == {"cat": 3, "sea lion": 0}


def test_a_file_of_powershell_is_text(read):
    assert read("cat,3\r\nsea lion,0\r\n".encode("utf-16")) == {"cat": 3, "sea lion": 0}


def test_a_list_numbers_by_place_and_classes_may_be_merged(read):
    assert read('["cat", "dog"]') == {"cat": 0, "dog": 1}
    assert read("cat 0\ntiger 0\ncat 0\n") == {"cat": 0, "tiger": 0}
    assert read("a,b,7\n10 2") == {"a,b": 7, "10": 2}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "has no class numbers. Accepted: lines of a name and a number"),
        ("{}", "has no class numbers."),
        ("[]", "has no class numbers."),
        ("cat\n", "classes.txt:1 is not a class and its number."),
        ("cat 1\ndog -1\n", "classes.txt:2 is not a class and its number."),
        ("cat 1.0", "classes.txt:1 is not a class and its number."),
        ("cat 1\ncat 2", "gives the class 'cat' two numbers, 1 and 2."),
        ('{"cat": 1, "cat": 2}', "gives the class 'cat' two numbers, 1 and 2."),
        ('["cat", "cat"]', "gives the class 'cat' two numbers, 0 and 1."),
        ('{"cat": 1', "is damaged JSON"),
        ("[" * 100_000, "is damaged JSON"),
        ('{"cat": true}', "'cat' has no class number."),
        ('{"cat": -1}', "'cat' has no class number."),
        ('{"cat": {"a": 1}}', "'cat' has no class number."),
        ('{"3": "7"}', "'3' has no class number."),  # which of the two is the name?
        ('[{"cat": 1}]', "has no class numbers."),
        (b"\xff\xfe\x00", "it is not text."),
        ("x" * (2**24 + 1), "is larger than 16 MiB, the most that is accepted."),
    ],
)
def test_what_numbers_no_classes_is_one_line(read, content, said):
    with pytest.raises(InputError) as refusal:
        read(content)
    assert said in str(refusal.value)
    assert "\n" not in str(refusal.value)
    assert len(str(refusal.value)) < 500


def test_what_cannot_be_read_is_one_line(tmp_path):
    with pytest.raises(InputError, match=r"Cannot read the class numbers in .*none \(No such file or directory\)\."):
        class_numbers.read(str(tmp_path / "none"))
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match="pipe is a pipe or a device"):
        class_numbers.read(str(tmp_path / "pipe"))
