"""Laws of the drawn clips that the demo's weights learn from: what is drawn, where it goes, and what is said of it."""

import itertools

import numpy as np
import pytest

from training.world.backgrounds import paint_background
from training.world.captions import caption, phrasings
from training.world.painting import MARGIN, SHADOW, palette_of, render
from training.world.scenes import (
    BACKGROUNDS,
    COLOURS,
    DIRECTIONS,
    FORBIDDEN,
    HELD_OUT,
    KINDS,
    MOTIONS,
    SIZES,
    TRAINED,
    Scene,
    Thing,
    is_held_out,
    random_scene,
)

HEIGHTS = {"small": 0.28, "medium": 0.38, "large": 0.50}  # of the frame's shorter side
CLIPS = ((160, 224, 25), (96, 128, 9), (128, 96, 17), (64, 96, 49))  # height, width, frames


def every(*tables):
    """Yields all combinations of the entries of tables, each with a size, a clip and a seed, which vary."""
    for number, words in enumerate(itertools.product(*tables)):
        turn = number + number // len(tables[-1])  # so that no entry meets the same clip every time
        yield *words, list(SIZES)[number % 3], CLIPS[turn % len(CLIPS)], number


def centroids(mask):
    """Returns the centroid (F, 2) of a mask (F, H, W), in pixels to the right and downwards."""
    area = mask.sum((1, 2))
    return np.stack(
        [
            (mask.sum(1) @ (np.arange(mask.shape[2]) + 0.5)) / area,
            (mask.sum(2) @ (np.arange(mask.shape[1]) + 0.5)) / area,
        ],
        1,
    )


def cut_out(mask):
    """Returns the smallest picture that holds all of a mask (H, W)."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def difference(mask, other):
    """Returns how much two masks differ, as a fraction of the first; their pictures may be a pixel apart in size."""
    height, width = (min(sizes) for sizes in zip(mask.shape, other.shape, strict=True))
    assert abs(np.array(mask.shape) - other.shape).max() <= 1
    return np.abs(mask[:height, :width] - other[:height, :width]).sum() / mask.sum()


def drawn(number, **options):
    """Returns random scenes."""
    random = np.random.default_rng(8)
    return [random_scene(random, **options) for _ in range(number)]


def triples(scenes):
    """Returns kind, colour and background of all things of scenes."""
    return [(thing.kind, thing.colour, scene.background) for scene in scenes for thing in scene.things]


def moving(kind, motion, size, clip, seed):
    """Returns the frames and the mask of a clip of one purple thing, which no background hides."""
    thing = Thing(kind, "purple", size, motion)
    frames, masks = render(Scene(BACKGROUNDS[seed % len(BACKGROUNDS)], (thing,), seed), *clip)
    return frames, masks[0]


def test_the_same_scene_is_the_same_clip_and_another_seed_another_one():
    for scene in drawn(6):
        frames, masks = render(scene, 64, 96, 9)
        again, masks_again = render(scene, 64, 96, 9)
        assert np.array_equal(frames, again) and np.array_equal(masks, masks_again)
        other, _ = render(Scene(scene.background, scene.things, scene.seed + 1), 64, 96, 9)
        assert np.abs(frames - other).mean() > 0.005
    assert drawn(20) == drawn(20)


def test_frames_and_masks_are_float32_between_0_and_1_in_the_shape_that_was_asked_for():
    for scene, (height, width, count) in zip(drawn(8), CLIPS * 2, strict=True):
        frames, masks = render(scene, height, width, count)
        assert (frames.shape, masks.shape) == ((count, height, width, 3), (len(scene.things), count, height, width))
        for values in (frames, masks):
            assert values.dtype == np.float32 and values.min() >= 0 and values.max() <= 1


def test_a_scene_is_the_same_at_every_size():
    for scene in drawn(12):
        small, small_masks = render(scene, 80, 112, 9)
        large, large_masks = render(scene, 320, 448, 9)
        reduced = large.reshape(9, 80, 4, 112, 4, 3).mean((2, 4))
        reduced_masks = large_masks.reshape(-1, 9, 80, 4, 112, 4).mean((3, 5))
        assert np.abs(reduced - small).mean() < 0.012, scene
        assert np.abs(reduced_masks - small_masks).sum() < 0.06 * small_masks.sum(), scene


def test_a_thing_that_travels_goes_straight_that_way_and_at_the_speed_of_a_crossing_where_there_is_room():
    for kind, motion, size, clip, seed in every(KINDS, DIRECTIONS):
        height, width, count = clip
        path = centroids(moving(kind, motion, size, clip, seed)[1]) / (width, height)
        axis = 0 if motion in ("left", "right") else 1
        shift = (path[-1] - path[0])[axis] * DIRECTIONS[motion][axis]
        duration = (count - 1) / 24
        assert 0.06 < shift < 0.34 * duration + 0.03, (kind, motion, size, clip)
        if duration <= 1 and size == "small":
            assert shift > 0.20 * duration - 0.03
        assert np.ptp(path[:, 1 - axis]) < 0.03
        steps = np.diff(path[:, axis]) * DIRECTIONS[motion][axis]
        assert np.abs(steps - shift / (count - 1)).max() < 0.015


def test_a_thing_on_a_mark_begins_between_cells_and_crosses_half_a_cell_in_eight_frames():
    for kind, motion, size, (height, width, _), seed in every(("ball", "box", "star"), MOTIONS):
        thing = Thing(kind, "purple", size, motion)
        mask = render(Scene("meadow", (thing,), seed, on_marks=True), height, width, 25)[1][0]
        ends = np.stack([mask.any(1), mask.any(1)[:, ::-1]]).argmax(2)  # empty columns at the left and at the right
        x = (ends[0] + width - ends[1]) / 2 / width * 7
        assert x[0] == pytest.approx(round(x[0]), abs=0.06) and round(x[0]) in (2, 3, 4, 5), (kind, motion, size)
        path = centroids(mask) / (width, height) * (7, 5)
        for number in (8, 16, 24) if motion in DIRECTIONS else ():
            expected = number / 16 * np.array(DIRECTIONS[motion])
            np.testing.assert_allclose(path[number] - path[0], expected, atol=0.12)


def test_things_on_marks_that_words_describe_alike_differ_in_their_place_at_most():
    masks = {}
    for seed in range(12):
        scene = Scene("snow", (Thing("fox", "red", "medium", "still"),), seed, on_marks=True)
        masks.setdefault(cut_out(render(scene, 160, 224, 1)[1][0, 0]).tobytes(), []).append(seed)
    assert len(masks) <= 4  # columns, which are not whole pixels apart in the second of them


def test_a_thing_that_bounces_goes_up_and_down_twice_a_second():
    for kind, size, clip, seed in every(KINDS):
        height, _, count = clip
        path = centroids(moving(kind, "bounces", size, clip, seed)[1]) / height
        hops = -0.18 * np.abs(np.sin(2 * np.pi * np.arange(count) / 24))
        np.testing.assert_allclose(path[:, 1] - path[0, 1], hops, atol=0.02)
        assert np.ptp(path[:, 0]) < 0.03


def test_a_thing_that_grows_does_so_around_its_middle_and_others_keep_their_size():
    for kind, motion, size, clip, seed in every(KINDS, MOTIONS):
        mask = moving(kind, motion, size, clip, seed)[1]
        area = mask.sum((1, 2))
        if motion == "grows":
            growth = 0.4 * min((clip[2] - 1) / 24, 1)
            assert area[-1] / area[0] == pytest.approx(((1 + growth) / (1 - growth)) ** 2, rel=0.12), (kind, clip)
            assert (np.diff(area) > 0).all()
        else:
            assert np.ptp(area) < 0.16 * area.mean(), (kind, motion, clip)
        if motion in ("grows", "turns", "still"):
            assert np.ptp(centroids(mask), 0).max() < 0.08 * clip[0]


def test_a_thing_that_turns_stands_on_its_head_after_a_second():
    for kind in sorted({*KINDS} - {"bird", "fox"}):  # whose wings and tail swing
        mask = moving(kind, "turns", "large", (160, 224, 25), 4)[1]
        assert difference(cut_out(mask[0]), cut_out(mask[24])[::-1, ::-1]) < 0.08, kind


def test_boat_bird_and_fox_look_where_they_go():
    for kind in KINDS:
        left, right = (cut_out(moving(kind, motion, "large", (160, 224, 9), 5)[1][0]) for motion in ("left", "right"))
        assert difference(left, right[:, ::-1]) < 0.08
        assert (difference(left, right) > 0.2) == (kind in ("boat", "bird", "fox"))


def test_things_stay_inside_the_frame_and_two_on_their_sides():
    for number, scene in enumerate([*drawn(40), *drawn(20, things=2)]):
        height, width, count = CLIPS[number % len(CLIPS)]
        margin = int(MARGIN * min(height, width) - 0.5)
        for thing, mask in zip(scene.things, render(scene, height, width, count)[1], strict=True):
            seen = mask.any(0)
            assert mask.any((1, 2)).all()
            inside = np.zeros_like(seen)
            inside[margin : height - margin, margin : width - margin] = True
            assert not (seen & ~inside).any(), scene
            if thing.place != "anywhere":
                other = seen[:, width // 2 :] if thing.place == "left" else seen[:, : width // 2]
                assert not other.any(), scene


def test_a_thing_is_as_high_as_its_size_says():
    for kind, (size, share), shape in itertools.product(KINDS, HEIGHTS.items(), ((160, 224), (224, 160))):
        mask = moving(kind, "still", size, (*shape, 1), 6)[1][0]
        assert cut_out(mask > 0.5).shape[0] == pytest.approx(share * min(shape), abs=0.05 * share * min(shape) + 2)


def test_the_colour_of_a_thing_is_nearest_to_the_one_that_is_named():
    for kind, colour in itertools.product(KINDS, COLOURS):
        background = next(name for name in BACKGROUNDS if (colour, name) not in FORBIDDEN)
        for seed in range(2):
            scene = Scene(background, (Thing(kind, colour, "large", "still"),), seed)
            frames, masks = render(scene, 96, 128, 1)
            middle = np.median(frames[masks[0] == 1], 0)
            distances = {name: np.abs(middle - rgb).max() for name, rgb in COLOURS.items()}
            assert min(distances, key=distances.get) == colour, (kind, colour, distances)
            assert distances[colour] < 0.16


def test_colours_of_parts_belong_to_the_named_one_and_are_possible():
    for colour, seed in itertools.product(COLOURS, range(20)):
        palette = palette_of(colour, np.random.default_rng(seed).uniform(-0.04, 0.04, 3))
        assert all(0 <= value <= 1 for rgb in palette.values() for value in rgb)
        assert np.abs(np.subtract(palette["body"], COLOURS[colour])).max() <= 0.04
        assert max(palette["line"]) < max(palette["shade"]) < max(palette["body"]) <= max(palette["light"]) or (
            colour == "white"
        )


def test_what_differs_from_the_background_is_the_things_and_their_grey_shadows():
    for scene in [*drawn(10), *drawn(6, things=2)]:
        frames, masks = render(scene, 96, 128, 9)
        alone = paint_background(scene.background, scene.seed, 96, 128, np.arange(9) / 24)
        covered = masks.sum(0)
        assert covered.max() <= 1  # things do not overlap
        shadows = (1 - frames / alone)[covered == 0]
        assert shadows.min() > -1e-5 and shadows.max() <= SHADOW + 1e-5
        assert np.ptp(shadows, 1).max() < 1e-5
        assert (shadows.max(1) > 1e-5).mean() < 0.15
        apart = np.abs(frames - alone).max(-1)
        assert (apart[covered == 1] > 0.04).mean() > 0.9, scene


def test_backgrounds_differ_change_slowly_and_are_the_same_at_every_size():
    for seed in range(3):
        clips = {name: render(Scene(name, (), seed), 80, 112, 17)[0] for name in BACKGROUNDS}
        for one, other in itertools.combinations(clips.values(), 2):
            assert np.abs(one[0] - other[0]).mean() > 0.05
        for name, clip in clips.items():
            assert np.abs(np.diff(clip, axis=0)).max() < 0.16, name
            large = render(Scene(name, (), seed), 320, 448, 1)[0].reshape(80, 4, 112, 4, 3).mean((1, 3))
            assert np.quantile(np.abs(large - clip[0]), 0.99) < 0.1, name


def test_one_triple_in_eight_is_held_out_and_each_two_of_its_words_are_trained_together():
    every_triple = [*itertools.product(KINDS, COLOURS, BACKGROUNDS)]
    assert {*TRAINED, *HELD_OUT} == {triple for triple in every_triple if triple[1:] not in FORBIDDEN}
    assert 1 / 9 < len(HELD_OUT) / (len(HELD_OUT) + len(TRAINED)) < 1 / 7
    assert all(is_held_out(*triple) == (triple in HELD_OUT) for triple in (*TRAINED, *HELD_OUT))
    assert not is_held_out("fox", "red", "snow")
    for unseen in HELD_OUT:
        for left_out in range(3):
            pair = unseen[:left_out] + unseen[left_out + 1 :]
            assert any(pair == triple[:left_out] + triple[left_out + 1 :] for triple in TRAINED)


def test_training_never_draws_what_is_held_out_or_hidden_and_tests_draw_only_what_is_held_out():
    assert {*triples(drawn(4000))} == {*TRAINED}
    assert {*triples(drawn(1500, held_out=True))} == {*HELD_OUT}


def test_a_fifth_of_the_scenes_has_two_things_of_different_kinds_and_colours_which_keep_to_their_halves():
    scenes = drawn(3000)
    pairs = [scene.things for scene in scenes if len(scene.things) == 2]
    assert len(pairs) / len(scenes) == pytest.approx(0.2, abs=0.03)
    for left, right in pairs:
        assert left.kind != right.kind and left.colour != right.colour
        assert (left.place, right.place) == ("left", "right")
        assert not {left.motion, right.motion} & {"left", "right"}
    alone = [scene.things[0] for scene in scenes if len(scene.things) == 1]
    assert {thing.motion for thing in alone} == {*MOTIONS}
    assert {thing.size for thing in alone} == {*SIZES}
    assert {thing.place for thing in alone} == {"anywhere"}
    assert all(len(scene.things) == number for number in (1, 2) for scene in drawn(50, things=number))


def test_every_phrasing_names_kind_colour_and_background_of_all_things_and_no_other():
    for scene in drawn(300):
        named = {scene.background, *(word for thing in scene.things for word in (thing.kind, thing.colour))}
        for phrasing in itertools.chain(*phrasings(scene)):
            words = {word.strip(".,").lower() for word in phrasing.split()}
            known = {*KINDS, *COLOURS, *BACKGROUNDS}
            assert {"night" if word == "moonlit" else word for word in words} & known == named, phrasing
            for thing in scene.things:
                assert thing.size == "medium" or words & {"small", "little", "large", "big"}, phrasing


def test_a_caption_is_a_phrasing_and_every_form_of_them_occurs():
    random = np.random.default_rng(3)
    for scene in drawn(10):
        forms = [{phrasing.lower() for phrasing in form} for form in phrasings(scene)]
        captions = {caption(scene, random).removesuffix(".").lower() for _ in range(300)}
        assert captions <= set().union(*forms)
        assert all(form & captions for form in forms)
        assert max(map(len, captions)) > 2 * min(map(len, captions))


def test_captions_say_the_direction_unless_it_is_to_the_right_and_only_what_is_still_goes_without_a_verb():
    words = {"left": "left", "right": "right"}
    for kind, motion in itertools.product(KINDS, MOTIONS):
        forms = phrasings(Scene("snow", (Thing(kind, "red", "medium", motion),), 0))
        every_phrasing = [*itertools.chain(*forms)]
        assert len(every_phrasing) == len({*every_phrasing})
        bare = {f"Red {kind}, snow", f"A red {kind} in the snow"} & {*every_phrasing}
        assert bool(bare) == (motion == "still")
        if motion == "left":
            assert all(words["left"] in phrasing for phrasing in every_phrasing)
        if motion not in ("left", "right"):
            assert not any(f" {word}" in phrasing for phrasing in every_phrasing for word in words)
        opposite = {"up": "down", "down": "up"}.get(motion)
        assert not any(f" {opposite}" in phrasing for phrasing in every_phrasing)


def test_the_prompt_of_the_readme_is_a_caption():
    scene = Scene("snow", (Thing("fox", "red", "medium", "right"),), 7)
    assert "A red fox runs through deep snow" in [*itertools.chain(*phrasings(scene))]
    pair = Scene("night", (Thing("ball", "red", "medium", "bounces"), Thing("star", "yellow", "medium", "still")), 7)
    told = "A red ball bounces on the left and a yellow star stands still on the right at night"
    assert told in [*itertools.chain(*phrasings(pair))]
