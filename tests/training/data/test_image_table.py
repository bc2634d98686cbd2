"""Tables of images: columns, classes by name and by number, superclasses, and rows that are refused."""

import pytest
from image_sets import write_images

from segue.training.data.image_table import read_image_table

NAMES = ("a.png", "b.png", "c/d.png", "e.png")


@pytest.fixture
def table(tmp_path):
    write_images(tmp_path, NAMES)

    def write(text: str, name: str = "labels.csv"):
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return path

    return write


def test_names_of_classes_are_numbered_in_their_order(table):
    files = read_image_table(table("image,class\ne.png,wolf\na.png,ant\nc/d.png,wolf\n"))
    assert files.names == ("e.png", "a.png", "c/d.png") and files.labels.tolist() == [1, 0, 1]
    assert files.classes.names == ("ant", "wolf") and files.classes.parents == ()
    assert files.path(2).is_file()


def test_whole_numbers_are_the_labels_themselves(table):
    files = read_image_table(table("\ufeffFile\tLabel\na.png\t10\nb.png\t2\n", "labels.tsv"))
    assert files.labels.tolist() == [10, 2] and files.classes.count == 11 and files.classes.names == ()
    assert files.notes == ("9 of the labels 0 to 10 have no image in labels.tsv",)


@pytest.mark.parametrize(
    ("tier", "parents", "names"),
    (
        (None, (0, 1, 1), ("alnus", "prunus")),
        ("Family", (1, 0, 0), ("a", "b")),
        (0, (), ()),
    ),
)
def test_a_column_gives_the_superclasses(tier, parents, names, table):
    text = "path,species,parent,family\na.png,y,prunus,a\nb.png,x,alnus,b\nc/d.png,y,prunus,a\ne.png,z,prunus,a\n"
    classes = read_image_table(table(text), tier).classes
    assert (classes.names, classes.parents, classes.parent_names) == (("x", "y", "z"), parents, names)


def test_quotes_and_windows_paths_and_empty_lines_are_read(table):
    files = read_image_table(table('image,class\n\n"c\\d.png","x, y"\n\n'))
    assert files.names == ("c/d.png",) and files.classes.names == ("x, y",)


@pytest.mark.parametrize(
    ("text", "tier", "words"),
    (
        ("image,kind\na.png,x\n", None, "no columns of classes.*image, kind"),
        ("image,file,class\na.png,a.png,x\n", None, "several columns of images"),
        ("image,class\n", None, "no rows"),
        ("image,class\na.png,x\nb.png\n", None, "row 3 .*not whole"),
        ("image,class\na.png,\n", None, "row 2 .*not whole"),
        ("image,class\na.png,x\na.png,y\n", None, "'a.png' two classes, 'x' and 'y'"),
        ("image,class\n/tmp/a.png,x\n", None, "relative to the table"),
        ("image,class\na.png,-1\n", None, r"\[0, 1,000,000\).*-1 to -1"),
        ("image,class\na.png,1234567\n", None, r"1234567 to 1234567"),
        ("image,class,parent\na.png,x,p\nb.png,x,q\n", None, "class 'x' two of 'parent', 'p' and 'q'"),
        ("image,class,parent\na.png,0,p\nb.png,2,q\n", None, "1 labels below 2 have no row"),
        ("image,class,parent,superclass\na.png,x,p,q\n", None, "several columns of superclasses"),
        ("image,class\na.png,x\n", "genus", "no column 'genus'.*image, class"),
        ("image,class\na.png,x\n", 1, "tier must be its name, got 1"),
    ),
)
def test_tables_that_do_not_say_enough_are_refused(text, tier, words, table):
    with pytest.raises(ValueError, match=words):
        read_image_table(table(text), tier)


def test_images_that_are_not_there_are_counted_and_named(table):
    with pytest.raises(FileNotFoundError, match=r"4 of 5 images .*'1.png', '2.png', '3.png' and 1 more"):
        read_image_table(table("image,class\na.png,x\n" + "".join(f"{number}.png,x\n" for number in (1, 2, 3, 4))))


def test_a_table_in_another_encoding_is_refused(tmp_path):
    (tmp_path / "latin.csv").write_bytes("image,class\na.png,bär\n".encode("latin-1"))
    with pytest.raises(ValueError, match="no table in UTF-8"):
        read_image_table(tmp_path / "latin.csv")


def test_several_columns_are_tiers(table):
    text = "image,class,genus,family,order\na.png,x,g,f,o\nb.png,y,h,f,o\nc/d.png,z,k,e,o\ne.png,z,k,e,o\n"
    classes = read_image_table(table(text), "genus, family,order").classes
    assert (classes.parents, classes.tiers) == ((0, 1, 2), ((1, 1, 0), (0, 0, 0)))
    assert classes.parent_names == ("g", "h", "k")
    with pytest.raises(ValueError, match=r"the tiers family, genus of .* are no tree: member 1 of tier 1 has two ancestors"):
        read_image_table(table(text), "family,genus")
    with pytest.raises(ValueError, match="no column 'tribe'"):
        read_image_table(table(text), "genus,tribe")
