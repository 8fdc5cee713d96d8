"""PSNR against its closed form, SSIM against its definition written out pixel by pixel and its properties."""

import jax
import numpy as np
import pytest

from world_model.analysis.image_metrics import mse, psnr_of_mse, ssim

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (2, 3, 14, 16, 3), np.uint8)


def test_psnr_closed_form():
    shifted = IMAGES.astype(np.float32) + 5.1
    found = psnr_of_mse(mse(shifted, IMAGES))
    np.testing.assert_allclose(found, np.full((2, 3), 20 * np.log10(255 / 5.1)), rtol=1e-5)
    unit = IMAGES / np.float32(127.5) - 1
    np.testing.assert_allclose(psnr_of_mse(mse(unit + 0.02, unit), peak=2), np.full((2, 3), 40), rtol=1e-4)
    assert np.isinf(psnr_of_mse(mse(IMAGES, IMAGES))).all()


def test_uint8_differences_do_not_wrap():
    np.testing.assert_allclose(mse(np.zeros((4, 4, 3), np.uint8), np.full((4, 4, 3), 200, np.uint8)), 200.0**2)
    assert psnr_of_mse(255.0**2) == 0


def test_ssim_equals_its_definition():
    a = RNG.uniform(0, 255, (12, 13, 1))
    b = np.clip(a + RNG.normal(0, 30, a.shape), 0, 255)
    line = np.exp(-((np.arange(11) - 5) ** 2) / (2 * 1.5**2))
    weights = np.outer(line, line) / np.outer(line, line).sum()
    values = []
    for row in range(2):
        for column in range(3):
            x, y = a[row:row + 11, column:column + 11, 0], b[row:row + 11, column:column + 11, 0]
            mx, my = (weights * x).sum(), (weights * y).sum()
            vx, vy = (weights * (x - mx) ** 2).sum(), (weights * (y - my) ** 2).sum()
            cov = (weights * (x - mx) * (y - my)).sum()
            c1, c2 = 2.55**2, 7.65**2
            values.append((2 * mx * my + c1) * (2 * cov + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2)))
    np.testing.assert_allclose(ssim(a, b), np.mean(values), rtol=1e-4)


def test_ssim_properties():
    def noise(scale):
        return np.clip(IMAGES + RNG.normal(0, scale, IMAGES.shape), 0, 255)
    little, much = noise(10), noise(60)
    assert ssim(IMAGES, IMAGES).shape == (2, 3)
    np.testing.assert_allclose(ssim(IMAGES, IMAGES), 1, atol=1e-5)
    np.testing.assert_allclose(ssim(IMAGES, much), ssim(much, IMAGES), atol=1e-6)
    assert (ssim(IMAGES, little) > ssim(IMAGES, much)).all()
    assert (ssim(IMAGES, 255 - IMAGES) < 0).all()  # inverted structure
    np.testing.assert_allclose(ssim(IMAGES, much), jax.jit(ssim)(IMAGES, much), atol=1e-6)
    np.testing.assert_allclose(ssim(IMAGES / 127.5, much / 127.5, peak=2), ssim(IMAGES, much), atol=1e-4)


def test_ssim_refuses_images_below_its_window():
    with pytest.raises(ValueError, match=r"at least 11 x 11 pixels, found \(8, 16\)"):
        ssim(IMAGES[..., :8, :, :], IMAGES[..., :8, :, :])
