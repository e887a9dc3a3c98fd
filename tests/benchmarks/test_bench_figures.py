"""The figures' numbers are what they say, and the drawings come from them alone."""

from __future__ import annotations

import torch
from bench_images import shade_images, tiny_network
from torch import nn

from benchmarks.attacks.patch import badnets
from benchmarks.rendering.drawing import save
from benchmarks.rendering.pictures import ENLARGED, GAP, PICTURED, attack_picture
from benchmarks.studies import fig1, fig4
from edgeclean.images.synthesize import SynthesizeSettings

TARGET = 1
ATTACK = badnets(classes=4, size=(8, 8), target=TARGET)


def test_fig1_clamps_at_tau_and_leaves_the_first_column_alone(tmp_path):
    network = tiny_network()
    rows = fig1.measure(network, ATTACK.stamp, TARGET, shade_images(24))
    assert [row["tau"] for row in rows] == [None, 0.8, 0.6, 0.4, 0.2]
    for row in rows:
        assert set(row["normalised"]) == {"0", "4"}  # both convolutions
        for values in row["normalised"].values():
            assert max(values) <= (row["tau"] or 1.0) + 1e-4
            assert values == sorted(values, reverse=True)
    assert all(max(values) == 1.0 for values in rows[0]["normalised"].values())
    victims = shade_images(24)
    pixels = victims.select(victims.labels != TARGET).floats()
    features = network.module[:-1]((pixels - 0.5) / 0.25).mean(0)
    assert torch.allclose(torch.tensor(rows[0]["h_clean"]), features, atol=1e-3)
    assert rows[0]["h_clean"] != rows[0]["h_trigger"]
    paths = [tmp_path / name for name in ("a.svg", "b.svg")]
    for path in paths:
        save(fig1.draw({"taus": rows}), path)
    assert paths[0].read_bytes() == paths[1].read_bytes()
    assert b"tau = 0.2" in paths[0].read_bytes() or b"<svg" in paths[0].read_bytes()


def test_fig4_counts_every_image_once_and_stays_within_epsilon(tmp_path):
    settings = SynthesizeSettings(count=16, steps=2, batch_size=16)
    record = fig4.measure(tiny_network(), TARGET, settings)
    counts = record["counts_by_epsilon"]
    assert list(counts) == ["0", "2", "4", "8"]
    assert all(sum(of_classes) == record["images"] for of_classes in counts.values())
    assert counts["0"][TARGET] == 0  # images of the attacker's class are left out
    save(fig4.draw(record), tmp_path / "fig4.svg")
    assert (tmp_path / "fig4.svg").stat().st_size > 1000


def test_the_untargeted_attack_lowers_its_own_class_within_its_budget():
    torch.manual_seed(0)
    function = nn.Sequential(nn.Flatten(), nn.Linear(3 * 64, 4)).requires_grad_(False)
    pixels, labels = torch.rand(12, 3, 8, 8), torch.arange(12) % 4
    generator = torch.Generator().manual_seed(0)
    moved = fig4.untargeted(function, pixels, labels, 0.05, generator)
    assert 0 <= moved.min() <= moved.max() <= 1
    assert 0.049 < float((moved - pixels).abs().max()) <= 0.05 + 1e-6
    own = nn.functional.cross_entropy(function(pixels), labels)
    assert nn.functional.cross_entropy(function(moved), labels) > own + 0.1
    assert torch.equal(fig4.untargeted(function, pixels, labels, 0.0, generator), pixels)


def test_a_picture_shows_clean_stamped_and_ten_times_the_difference():
    images = shade_images(PICTURED)
    picture = attack_picture(ATTACK, images)
    step = 8 + GAP
    assert picture.size == (
        ENLARGED * (PICTURED * step - GAP),
        ENLARGED * (3 * step - GAP),
    )
    small = picture.resize((PICTURED * step - GAP, 3 * step - GAP), 0)
    corner, outside = (7, 7), (0, 0)
    first = images.pixels[0]
    assert small.getpixel(corner) == tuple(first[:, 7, 7].tolist())
    assert small.getpixel((7, step + 7)) == (255, 255, 0)  # the checker's last pixel
    assert small.getpixel((outside[0], 2 * step)) == (0, 0, 0)  # nothing changed there
    change = (torch.tensor([255, 255, 0]) - first[:, 7, 7].int()).abs() * 10
    shown = torch.tensor(small.getpixel((7, 2 * step + 7)))
    assert (shown - change.clamp(max=255)).abs().max() <= 1
