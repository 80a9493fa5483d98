"""Batches, their order, and what interleaves them."""

import functools

import numpy as np
import pytest
import tensorflow as tf

from mln_keras.data import inputs
from mln_keras.data.batches import (
    batches,
    have_one_shape,
    largest_divisor,
    mix,
    steps_an_epoch,
    steps_in_memory,
    with_meta,
)
from mln_keras.training.phases import Phase


def numbered(count, first=0):
    """Images (count, 1, 1, 1) and labels, in which each sample is its own number."""
    numbers = np.arange(first, first + count, dtype=np.int32)
    return numbers.reshape(-1, 1, 1, 1), numbers


def batch_numbers(dataset):
    """The sample numbers of each batch, of images that carry their own label."""
    found = []
    for images, labels in dataset.as_numpy_iterator():
        np.testing.assert_array_equal(images.ravel(), labels)
        found.append(labels.tolist())
    return found


@pytest.mark.parametrize(("seed", "count"), [(None, 20), (None, 23), (7, 20), (7, 23)])
def test_an_epoch_has_full_batches_and_no_sample_twice(seed, count):
    dataset = batches(*numbered(count), 5, seed=seed, epochs=range(2, 4))
    found = batch_numbers(dataset)
    assert [len(batch) for batch in found] == [5] * 8 == [5] * int(dataset.cardinality())
    for epoch in (sum(found[:4], []), sum(found[4:], [])):
        assert len(set(epoch)) == 20 and set(epoch) <= set(range(count))
    assert dataset.element_spec[0].shape == (5, 1, 1, 1)


def test_another_sample_is_left_over_in_another_epoch():
    found = batch_numbers(batches(*numbered(23), 5, seed=7, epochs=range(20)))
    assert set(sum(found, [])) == set(range(23))


def test_the_order_is_a_function_of_seed_and_epoch():
    def order(seed, start, stop):
        return batch_numbers(batches(*numbered(40), 8, seed=seed, epochs=range(start, stop)))

    epochs = [order(3, epoch, epoch + 1) for epoch in range(3)]
    assert order(3, 0, 3) == sum(epochs, []) and order(3, 1, 3) == sum(epochs[1:], [])
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]
    for epoch, found in enumerate(epochs):
        in_order = order(None, epoch, epoch + 1)
        assert order(4, epoch, epoch + 1) != found != in_order
        assert sorted(map(sorted, found)) != sorted(map(sorted, in_order))


def test_without_a_seed_the_samples_keep_their_order():
    dataset = batches(*numbered(11), 5, epochs=range(2))
    assert batch_numbers(dataset) == 2 * [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]]


@pytest.mark.parametrize(("noisy", "unlabeled"), [(10, 5), (3, 8), (9, 2), (3, 0)])
def test_mix_interleaves_every_batch_once_an_epoch_in_proportion(noisy, unlabeled):
    epochs = range(4, 6)
    first = batches(*numbered(2 * noisy), 2, epochs=epochs)
    images = numbered(3 * unlabeled, first=100)[0]
    others = tf.data.Dataset.from_tensor_slices(images).batch(3).repeat(len(epochs))
    total = noisy + unlabeled
    dataset = mix(first, others, epochs)
    assert int(dataset.cardinality()) == 2 * total
    mixed = list(dataset.as_numpy_iterator())
    for epoch in (mixed[:total], mixed[total:]):
        kinds, numbers = [], []
        for images, labels in epoch:
            kinds.append(len(images) == 3)
            numbers += images.ravel().tolist()
            np.testing.assert_array_equal(labels, [-1] * 3 if kinds[-1] else images.ravel())
            assert labels.dtype == np.int32
            assert abs(sum(kinds) - len(kinds) * unlabeled / total) < 1
        assert sorted(numbers) == [*range(2 * noisy), *range(100, 100 + 3 * unlabeled)]


@pytest.mark.parametrize(("steps", "count"), [(3, 5), (5, 3), (4, 2), (1, 3)])
def test_meta_batches_come_round_and_go_on_in_the_next_epoch(steps, count):
    def meta_numbers(epochs):
        noisy = batches(*numbered(2 * steps), 2, epochs=epochs)
        meta_of = functools.partial(batches, *numbered(2 * count, first=100), 2)
        pairs = with_meta(noisy, meta_of, epochs)
        assert int(pairs.cardinality()) == steps * len(epochs)
        pairs = [(n[1][0] // 2, m[1][0] // 2 - 50) for n, m in pairs.as_numpy_iterator()]
        assert [noisy for noisy, _ in pairs] == [*range(steps)] * len(epochs)
        return [int(meta) for _, meta in pairs]

    found = meta_numbers(range(count + 1))
    assert found == [i % count for i in range((count + 1) * steps)]
    for epoch in range(count + 1):  # of a run continued here
        assert meta_numbers(range(epoch, count + 1)) == found[epoch * steps :]


def test_shuffled_meta_batches_are_drawn_anew_each_round_and_leave_no_sample_out_for_ever():
    def meta_numbers(epochs, seed=7):
        noisy = batches(*numbered(4), 2, epochs=epochs)
        meta_of = functools.partial(batches, *numbered(17), 5, seed=seed)
        pairs = with_meta(noisy, meta_of, epochs)
        return [m[1].tolist() for _, m in pairs.as_numpy_iterator()]

    found = meta_numbers(range(30))
    rounds = [sum(found[i : i + 3], []) for i in range(0, 60, 3)]
    assert all(len(set(numbers)) == 15 for numbers in rounds)
    assert len(set(map(tuple, rounds))) == 20 and set(sum(rounds, [])) == set(range(17))
    for epoch in (1, 2, 3, 17):  # of a run continued here
        assert meta_numbers(range(epoch, 30)) == found[2 * epoch :]
    assert meta_numbers(range(30), seed=8) != found


def test_the_order_of_meta_data_is_the_seeds_and_not_that_of_as_many_training_data():
    numbers = np.arange(20, dtype=np.uint8).reshape(-1, 1, 1, 1), np.zeros(20, int)

    def pairs(seed):
        training_data = inputs.TrainingData(
            numbers, numbers, None, inputs.Expected((1, 1, 1), 1), inputs.Batching(5, seed)
        )
        phase_2 = Phase("phase 2", samples="all", with_meta=True)
        found = training_data.batches(phase_2, range(3)).as_numpy_iterator()
        return [(x.ravel().tolist(), x_meta.ravel().tolist()) for (x, _), (x_meta, _) in found]

    assert all(set(x) != set(x_meta) for x, x_meta in pairs(7))
    assert [meta for _, meta in pairs(7)] != [meta for _, meta in pairs(8)]


def test_unlabeled_images_beside_a_data_set_come_in_another_order_each_epoch():
    noisy = tf.data.Dataset.from_tensor_slices(numbered(10)).batch(5)
    training_data = inputs.TrainingData(
        noisy, None, numbered(23)[0], inputs.Expected((1, 1, 1), 10), inputs.Batching(5, seed=7)
    )
    found = training_data.batches(Phase("phase 2", samples="all"), range(2)).as_numpy_iterator()
    numbers = [images.ravel().tolist() for images, labels in found if labels[0] == -1]
    assert len(numbers) == 8
    assert sorted(map(sorted, numbers[:4])) != sorted(map(sorted, numbers[4:]))


def test_a_meta_set_of_unknown_length_begins_anew_each_epoch():
    epochs = range(1, 3)
    noisy = batches(*numbered(10), 2, epochs=epochs)
    meta = batches(*numbered(6, first=100), 2).filter(lambda *_: True)
    pairs = with_meta(noisy, lambda epochs: meta, epochs)
    assert steps_an_epoch(pairs, epochs) == 5
    assert [int(m[1][0]) for _, m in pairs.as_numpy_iterator()] == 2 * [100, 102, 104, 100, 102]


def test_data_of_unknown_length_get_meta_batches_too():
    noisy = batches(*numbered(10), 2).filter(lambda *_: True)
    meta_of = functools.partial(batches, *numbered(4, first=100), 2)
    pairs = with_meta(noisy, meta_of, range(1, 2))
    assert [int(m[1][0]) for _, m in pairs.as_numpy_iterator()] == [100, 102, 100, 102, 100]


def test_steps_an_epoch_are_known_of_data_of_known_length():
    dataset = batches(*numbered(12), 1, epochs=range(5, 8))
    assert steps_an_epoch(dataset, range(5, 8)) == 12
    for other in (dataset.repeat(), dataset.filter(lambda *_: True), dataset.take(0)):
        assert steps_an_epoch(other, range(5, 8)) is None


def test_the_largest_divisor():
    found = {
        (number, at_most): largest_divisor(number, at_most)
        for number, at_most in [(18, 1), (18, 5), (18, 7), (18, 18), (18, 30), (17, 16), (351, 30)]
    }
    assert list(found.values()) == [1, 3, 6, 18, 18, 1, 27]


def test_a_call_takes_no_more_steps_than_memory_is_for(monkeypatch):
    dataset = batches(*numbered(24), 4)  # 16 bytes of images, as many of labels
    monkeypatch.setattr("mln_keras.data.batches.CALL_BYTES", 100)
    assert [steps_in_memory(dataset, most) for most in (1, 2, 3, 390)] == [1, 2, 3, 3]
    monkeypatch.setattr("mln_keras.data.batches.CALL_BYTES", 10)
    assert steps_in_memory(dataset, 390) == 1
    assert steps_in_memory(dataset.unbatch().batch(4), 390) >= 1  # of unknown size


def test_batches_have_one_shape_where_it_is_known():
    dataset = batches(*numbered(12), 1)
    assert have_one_shape(dataset)
    assert not have_one_shape(dataset.unbatch().batch(2))
