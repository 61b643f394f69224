"""Every row of the tables of `data.md` has a test."""

from __future__ import annotations

import ast
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
PAGE = next((TESTS.parent / "docs").rglob("data.md"))

# The first cell of a row, verbatim, and the functions that test the row's claim.
ROWS: dict[str, tuple[str, ...]] = {
    # Two sets that are used together
    "the same names in another order": ("data/test_classes.py::test_classes_are_matched_by_name",),
    "test images of some of the classes": (
        "data/test_classes.py::test_classes_are_matched_by_name",
        "data/test_folders.py::test_test_images_of_some_classes_have_the_numbers_of_the_training_images",
    ),
    "a name that the other set does not have": ("data/test_classes.py::test_what_differs_is_named",),
    "numbers (`0`, `1`, ...) against names": ("data/test_classes.py::test_what_differs_is_named",),
    "two classes of one name": ("data/test_classes.py::test_what_differs_is_named",),
    "another image shape": ("data/test_classes.py::test_what_differs_is_named",),
    "clean images, a base or perturbations with another number of images or other labels": (
        "data/test_classes.py::test_image_by_image_count_and_labels_must_match_too",
        "poisons/test_published.py::test_images_with_labels_must_fit_the_base",
    ),
    "processes that read different files": (
        "scale/test_ranks.py::test_processes_that_read_different_files_are_refused",
    ),
    "`--resume` with other pixels, labels or classes": (
        "data/test_classes.py::test_a_run_is_resumed_only_with_the_same_images",
        "cli/test_files.py::test_a_set_poisoned_again_is_not_resumed",
    ),
    # Folders
    "`train`, `Train`, `Training`, `training_set`, `seg_train`, `train_data`; the same once more within": (
        "data/test_folders.py::test_splits_by_their_usual_names",
    ),
    "`test`, `Testing`, `test_set`, `seg_test`; else `val`, `valid`, `validation`, `dev`, `eval`": (
        "data/test_folders.py::test_splits_by_their_usual_names",
        "data/test_folders.py::test_test_precedes_val_and_two_of_a_kind_are_refused",
    ),
    "`train` and `Training` beside each other; two of `test`": (
        "data/test_folders.py::test_test_precedes_val_and_two_of_a_kind_are_refused",
    ),
    "`train/` beside class folders, and no `test/`": ("data/test_folders.py::test_classes_called_train_and_test",),
    "class folders that each hold `train/` and `test/`, or all hold the same folders": (
        "data/test_folders.py::test_splits_and_classes_within_class_folders_are_refused",
    ),
    "classes called `train`, `test`, `val` within `train/`": (
        "data/test_folders.py::test_classes_called_train_and_test",
    ),
    "`train/` and `test/` with images and no class folders": ("data/test_folders.py::test_flat_splits_need_a_table",),
    "`val/images` with `val_annotations.txt` (Tiny ImageNet)": (
        "data/test_folders.py::test_tiny_imagenet_takes_its_annotations",
    ),
    "a flat `val/` with `LOC_val_solution.csv`, `val.txt` or another table of names and classes, in it or beside it": (
        "data/test_folders.py::test_imagenets_flat_val_takes_a_table",
    ),
    "a table whose classes are not class folders, such as bare numbers": (
        "data/test_folders.py::test_imagenets_flat_val_takes_a_table",
    ),
    "`sample_submission.csv`": ("data/test_folders.py::test_a_sample_submission_is_not_a_table_of_labels",),
    "folders whose names are all numbers": (
        "data/test_folders.py::test_numbers_sort_as_numbers_and_other_names_as_text",
    ),
    "hidden files and folders, `@eaDir`, `__MACOSX`, `#recycle`, ... at any depth": (
        "data/test_folders.py::test_what_is_left_out_is_counted_by_kind",
    ),
    "a link to a folder above, or to one of the same set": (
        "data/test_folders.py::test_what_is_left_out_is_counted_by_kind",
    ),
    "a link to a file, or to a folder elsewhere": (
        "data/test_folders.py::test_links_to_files_and_folders_elsewhere_are_followed",
    ),
    "pipes, sockets, devices, broken links, other suffixes": (
        "data/test_folders.py::test_what_is_left_out_is_counted_by_kind",
    ),
    "images beside the class folders, folders beside the splits": (
        "data/test_folders.py::test_what_is_left_out_is_counted_by_kind",
        "data/test_folders.py::test_test_precedes_val_and_two_of_a_kind_are_refused",
    ),
    "`.jpg` `.jpeg` `.jpe` `.jfif` `.png` `.webp` `.bmp` `.gif` `.ppm` `.pgm` `.pbm` `.pnm` `.tif` `.tiff`, in any"
    " case; `.avif` where Pillow has it": (
        "data/test_folders.py::test_every_suffix_of_the_page_is_read",
        "data/test_folders.py::test_suffixes_in_any_case",
    ),
    "a class folder without an image": ("data/test_readers.py::test_a_class_without_image_is_named",),
    "a folder's name that is not UTF-8": ("data/test_folders.py::test_a_name_that_is_not_utf8_is_read",),
    # Pixels
    "EXIF orientation": ("data/test_pixels.py::test_exif_turns_nothing_and_that_is_reported",),
    "transparency": ("data/test_pixels.py::test_transparency_is_dropped_and_counted",),
    "16-bit images": (
        "data/test_pixels.py::test_16_bits_are_divided_by_256_and_that_is_reported",
        "data/test_pixels.py::test_colours_of_16_bits",
    ),
    "16-bit images whose largest value is 4,095 or less": ("data/test_pixels.py::test_12_bits_in_16_are_refused",),
    "float images in [0, 1]": ("data/test_pixels.py::test_floats_are_shares_of_white_or_refused",),
    "other floats, NaN, 32-bit integers": (
        "data/test_pixels.py::test_floats_are_shares_of_white_or_refused",
        "data/test_pixels.py::test_whole_numbers_beyond_16_bits_are_refused",
    ),
    "a damaged JPEG, also one that Pillow would fill with gray": (
        "data/test_pixels.py::test_a_damaged_jpeg_is_named_or_left_out",
        "cli/test_files.py::test_damaged_images_are_left_out_on_demand",
    ),
    "an image that declares more than 89,478,485 pixels (`ULFAST_MAX_PIXELS`)": (
        "data/test_pixels.py::test_an_image_declared_too_large_is_refused",
    ),
    "images of several sizes": ("data/test_readers.py::test_mixed_sizes_require_resize",),
    "one channel, or not square": (
        "data/test_classes.py::test_what_is_exported_reads_back_the_same",
        "data/test_readers.py::test_jpeg_equals_its_decoder_and_gray_becomes_colour",
    ),
    # Files
    "images or labels that do not match the checksums of their folder": (
        "data/test_checksums.py::test_of_a_large_set_some_blocks_are_looked_at_and_all_with_verify",
        "data/test_checksums.py::test_verify_is_an_option_of_what_reads",
    ),
    "`.npz` with `images` and `labels`, `x` and `y`, `data` and `targets`, alone, or with the suffix"
    " `_train` or `_test` or the prefix `train_` or `test_`; `arr_0` and `arr_1`": (
        "data/test_npz.py::test_arrays_are_found_by_their_usual_names",
        "data/test_npz.py::test_medmnist_has_three_splits_and_test_precedes_val",
    ),
    "`.npz` with two arrays that may be the images, or the labels; `arr_0` to `arr_3`": (
        "data/test_npz.py::test_ambiguous_arrays_are_asked_about",
    ),
    "`.npz` labels as text": ("data/test_classes.py::test_labels_may_be_names",),
    "`.npz` labels that are not whole numbers from 0, or beyond a million": (
        "data/test_classes.py::test_invalid_labels_are_one_line",
    ),
    "`classes` that are not a list of names; an `.npy` under the name `.npz`": (
        "data/test_classes.py::test_invalid_labels_are_one_line",
        "data/test_classes.py::test_an_array_with_the_suffix_of_an_archive",
    ),
    "an array whose header claims more than its file holds": (
        "data/test_npz.py::test_a_header_that_says_more_than_the_file_holds_takes_no_memory",
        "data/test_pairs.py::test_an_array_shorter_than_its_header_takes_no_memory",
    ),
    "`x_train*.npy` with `y_train*.npy` (NTGA), `x_test*.npy` beside them": (
        "data/test_pairs.py::test_ntgas_arrays_are_a_set_of_their_own",
    ),
    "a pickle of a list of (bytes or array, label) (ECLIPSE, COIN, DUNE)": (
        "data/test_pairs.py::test_pickled_pairs",
        "data/test_pairs.py::test_bytes_in_an_order_that_cannot_be_told_are_refused",
    ),
    "a pickle that holds code": (
        "data/test_readers.py::test_a_pickle_with_code_is_refused_and_does_not_run",
        "data/test_pairs.py::test_pickles_that_are_no_pairs_are_one_line",
    ),
    "CIFAR's batches, also saved again by Python 3": (
        "data/test_readers.py::test_cifar_python",
        "data/test_readers.py::test_cifar_saved_again_by_python_3",
    ),
    "MNIST's idx files, also `.gz`, also in `raw/`": (
        "data/test_binaries.py::test_mnist",
        "data/test_binaries.py::test_fashion_mnist_has_names",
    ),
    "EMNIST, which stores its images by columns": (
        "data/test_binaries.py::test_emnist_is_turned_upright_and_its_letters_are_named",
    ),
    "two sets of EMNIST in a folder": (
        "data/test_binaries.py::test_emnist_is_turned_upright_and_its_letters_are_named",
    ),
    "STL-10's `train_X.bin`, by columns, labels from 1": (
        "data/test_binaries.py::test_stl10_is_by_columns_and_its_labels_begin_at_one",
    ),
    "`.beton` with several integer fields": (
        "data/test_classes.py::test_several_integer_fields_require_a_choice_of_the_label",
    ),
    "`.beton` of gray images": ("data/test_beton.py::test_one_channel_is_written_as_three_and_read_as_one",),
    "`00000.png`, `0.PNG`, `0.png` of a published poison": (
        "data/test_classes.py::test_numbered_pngs_with_zeros_in_front",
    ),
    "a perturbation in whole numbers": ("data/test_classes.py::test_perturbations_in_whole_levels",),
    "a perturbation in [-1, 1] whose bound is stored elsewhere (contrastive poisoning), alone or in a checkpoint": (
        "data/test_pairs.py::test_a_perturbation_inside_a_checkpoint_with_its_bound_apart",
        "cli/test_formats.py::test_import_without_a_base_and_with_a_scale",
    ),
    "poisoned images in [-1, 1] or normalised, given as a perturbation": (
        "data/test_classes.py::test_images_on_another_scale_are_no_perturbation",
    ),
    "coefficients of `ar` that are not finite, or zero": (
        "poisons/test_generators.py::test_ar_coefficients_that_make_no_noise_are_refused",
    ),
    # WebDataset and Parquet
    "shards: a `.tar`, a folder of them, `name-{000000..000012}.tar`": (
        "data/test_wds.py::test_shards_are_read_back_with_their_classes_and_read_by_index",
        "data/test_wds.py::test_names_of_any_length_and_folders_in_the_archive",
        "data/test_wds.py::test_splits_by_the_names_of_shards_by_folders_by_info_and_by_braces",
    ),
    "`train-*.tar`, `x-validation-*.tar`, `train/*.tar`, or `splits` in `info.json` or `_info.json`": (
        "data/test_wds.py::test_splits_by_the_names_of_shards_by_folders_by_info_and_by_braces",
    ),
    "`.jpg`, `.png`, `.webp`, ... of a sample; several of them": (
        "data/test_wds.py::test_several_images_in_a_sample_require_a_choice",
    ),
    "`.cls`": (
        "data/test_wds.py::test_splits_by_the_names_of_shards_by_folders_by_info_and_by_braces",
        "data/test_wds.py::test_names_of_any_length_and_folders_in_the_archive",
        "data/test_wds.py::test_damaged_images_and_labels",
    ),
    "`.json` without a `.cls`": ("data/test_wds.py::test_labels_in_json_by_number_and_by_name",),
    "long names of pax and GNU": (
        "data/test_wds.py::test_members_are_those_of_tarfile",
        "data/test_wds.py::test_names_of_any_length_and_folders_in_the_archive",
    ),
    "`.tar.gz`, `.tgz`, `.tar.zst`, or compressed bytes under another name": (
        "data/test_wds.py::test_compressed_archives_are_refused",
    ),
    "a shard that is cut short, a damaged header": (
        "data/test_wds.py::test_damaged_archives_are_named",
        "data/test_wds.py::test_a_size_beyond_the_file_takes_no_memory",
    ),
    "a `.tar` beside class folders": ("data/test_wds.py::test_an_archive_beside_class_folders_is_not_the_data_set",),
    "`data/train-00000-of-00003.parquet`, `CONFIG/train-*`, `default/train/0000.parquet`, one file": (
        "data/test_parquet.py::test_files_are_found_as_the_hub_names_them",
    ),
    "several configurations side by side": ("data/test_parquet.py::test_two_configurations_require_a_choice",),
    "the one column of image structs, the one `ClassLabel` with its names": (
        "data/test_parquet.py::test_files_are_found_as_the_hub_names_them",
        "data/test_parquet.py::test_several_columns_require_a_choice",
    ),
    "several of either, as in CIFAR-100": ("data/test_parquet.py::test_several_columns_require_a_choice",),
    "rows that hold the path of an image and not its bytes": ("data/test_parquet.py::test_damage_is_named",),
    "`.parquet` without pyarrow": ("data/test_parquet.py::test_without_pyarrow_the_extra_is_named",),
    "a damaged image in a shard or a table": (
        "data/test_wds.py::test_damaged_images_and_labels",
        "data/test_parquet.py::test_damage_is_named",
    ),
    # Objects
    "a map-style dataset of torch or torchvision, a list of (image, label)": (
        "data/test_objects.py::test_a_map_style_dataset_of_torch",
        "data/test_objects.py::test_lists_of_pairs_and_of_dictionaries",
    ),
    "a list of dictionaries": ("data/test_objects.py::test_lists_of_pairs_and_of_dictionaries",),
    "a `datasets.Dataset`, or a `DatasetDict`": ("data/test_objects.py::test_a_dataset_of_hugging_face_by_its_types",),
    "pictures of Pillow, arrays, tensors; uint8 or floats in [0, 1], channels first or last": (
        "data/test_objects.py::test_a_map_style_dataset_of_torch",
        "data/test_objects.py::test_gray_pictures_stay_gray_and_become_colour_among_others",
    ),
    "normalised tensors": ("data/test_objects.py::test_objects_that_are_not_data_sets_are_one_line",),
    "one object for training and test images": ("data/test_objects.py::test_an_object_is_one_split",),
}


def rows(page: str) -> list[str]:
    """The first cells of all tables, without those of their heads."""
    lines = page.splitlines()
    return [
        line.split("|")[1].strip()
        for line, after in zip(lines, [*lines[1:], ""], strict=True)
        if line.startswith("| ") and not after.startswith("|---")
    ]


def functions(file: Path) -> set[str]:
    return {node.name for node in ast.parse(file.read_text()).body if isinstance(node, ast.FunctionDef)}


def test_every_row_of_the_page_names_its_tests():
    found = rows(PAGE.read_text())
    assert len(found) > 80
    assert len(set(found)) == len(found)
    assert set(found) == set(ROWS)


def test_the_named_tests_exist():
    known = {
        file: functions(TESTS / file) for file in {test.split("::")[0] for tests in ROWS.values() for test in tests}
    }
    for row, tests in ROWS.items():
        assert tests, row
        for test in tests:
            file, _, name = test.partition("::")
            assert name.startswith("test_"), test
            assert name in known[file], test
