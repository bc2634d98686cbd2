"""Folders as classes: their order, their levels, and what is refused."""

import pytest
from image_sets import write_images

from segue.training.data.image_folder import read_image_folder

FLAT = ("cat/2.png", "cat/1.png", "dog/1.png", "ant/x.png")
TREE = tuple(
    f"{family}/{genus}/{species}/{number}.png"
    for family, genus, species in (
        ("rose", "prunus", "avium"),
        ("rose", "prunus", "alba"),
        ("rose", "rosa", "alba"),
        ("birch", "alnus", "rubra"),
    )
    for number in (1, 2)
)


def test_classes_are_folders_in_their_order(tmp_path):
    write_images(tmp_path, FLAT)
    files = read_image_folder(tmp_path)
    assert files.names == ("ant/x.png", "cat/1.png", "cat/2.png", "dog/1.png")
    assert files.labels.tolist() == [0, 1, 1, 2]
    assert files.classes.names == ("ant", "cat", "dog") and files.classes.parents == ()
    assert files.sizes == tuple((tmp_path / name).stat().st_size for name in files.names)


@pytest.mark.parametrize(
    ("tier", "parents", "names"),
    (
        (None, (0, 1, 1, 2), ("alnus", "prunus", "rosa")),
        (1, (0, 1, 1, 2), ("alnus", "prunus", "rosa")),
        ("2", (0, 1, 1, 1), ("birch", "rose")),
        (0, (), ()),
    ),
)
def test_a_level_above_gives_the_superclasses(tier, parents, names, tmp_path):
    from segue.training.data.classes import check_tier

    write_images(tmp_path, TREE)
    files = read_image_folder(tmp_path, check_tier(tier))
    # two species of one name are two classes, told apart by their whole paths
    assert files.classes.names == ("birch/alnus/rubra", "rose/prunus/alba", "rose/prunus/avium", "rose/rosa/alba")
    assert (files.classes.parents, files.classes.parent_names) == (parents, names)
    assert any("tier chooses another" in note for note in files.notes) == (tier is None)


def test_a_folder_around_everything_is_no_level(tmp_path):
    write_images(tmp_path, [f"images/{name}" for name in FLAT])
    files = read_image_folder(tmp_path)
    assert files.classes.names == ("ant", "cat", "dog") and files.classes.parents == ()
    assert "images" in files.notes[0]


def test_one_folder_is_one_class(tmp_path):
    write_images(tmp_path, ("all/1.png", "all/2.png"))
    assert read_image_folder(tmp_path).classes.names == ("all",)


def test_other_files_are_left_out_and_told_and_hidden_ones_are_not_seen(tmp_path):
    write_images(tmp_path, FLAT)
    (tmp_path / "cat" / "notes.txt").write_text("x")
    (tmp_path / ".cache").mkdir()
    write_images(tmp_path, (".cache/1.png", "cat/.thumb.png"))
    files = read_image_folder(tmp_path)
    assert len(files) == len(FLAT) and files.notes == ("1 files that are no images are left out: 'cat/notes.txt'",)


def test_links_are_followed_and_one_that_has_no_end_is_refused(tmp_path):
    write_images(tmp_path / "store", FLAT)
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "dog").symlink_to(tmp_path / "store" / "dog")
    (tmp_path / "set" / "cat").symlink_to(tmp_path / "store" / "cat")
    assert read_image_folder(tmp_path / "set").classes.names == ("cat", "dog")
    (tmp_path / "set" / "again").symlink_to(tmp_path / "set")
    with pytest.raises((ValueError, OSError), match=r"no end|Too many"):
        read_image_folder(tmp_path / "set")


@pytest.mark.parametrize(
    ("names", "tier", "words"),
    (
        (("cat/1.png", "2.png"), None, "1 images beside the folders.*'2.png'"),
        (("cat/1.png", "a/b/2.png"), None, "several levels.*'cat'.*'a/b'"),
        (("train/cat/1.png", "val/cat/2.png"), None, "'train', 'val'.*give one of them"),
        (TREE, 3, r"2 levels.*\[0, 2\], got 3"),
        (FLAT, 1, r"0 levels.*\[0, 0\], got 1"),
        (TREE, "genus", "tier 'genus' is the name of a column"),
        ((), None, "holds no images"),
    ),
)
def test_what_is_no_tree_of_classes_is_refused(names, tier, words, tmp_path):
    write_images(tmp_path, names)
    with pytest.raises(ValueError, match=words):
        read_image_folder(tmp_path, tier)


def test_the_digest_is_of_names_sizes_and_labels_wherever_they_lie(tmp_path):
    for place in ("here", "there", "fewer", "larger", "other"):
        write_images(tmp_path / place, FLAT[:-1] if place == "fewer" else FLAT)
    write_images(tmp_path / "larger", FLAT[:1], size=(40, 40))
    (tmp_path / "other" / "dog").rename(tmp_path / "other" / "wolf")
    digests = {place.name: read_image_folder(place).digest for place in tmp_path.iterdir()}
    assert digests["here"] == digests["there"] and len(set(digests.values())) == 4
    write_images(tmp_path / "tree", TREE)
    assert len({read_image_folder(tmp_path / "tree", tier).digest for tier in (0, 1, 2)}) == 3


def test_several_levels_are_tiers(tmp_path):
    paths = ("order/family/genus/a", "order/family/genus/b", "order/family/other/c", "order/rest/third/d", "last/one/two/e")
    write_images(tmp_path, [f"{path}/1.png" for path in paths])
    classes = read_image_folder(tmp_path, "1,3").classes
    assert classes.names == ("e", "a", "b", "c", "d")
    assert (classes.parents, classes.tiers) == ((0, 1, 1, 2, 3), ((0, 1, 1, 1, 1),))
    assert read_image_folder(tmp_path, "1,2,3").classes.tiers == ((0, 1, 1, 1, 2), (0, 1, 1, 1, 1))
    for tier, words in (("2,1", "rise from the class upwards"), ("1,9", "got 9"), ("1,x", "levels of folders have numbers")):
        with pytest.raises(ValueError, match=words):
            read_image_folder(tmp_path, tier)
