import pytest
import torch
import torch.nn.functional as F
from torch import nn

from convlstm.stages import down, each, map_size, over_time, resize, resize_by_products, up


@pytest.mark.parametrize("factor", [1, 2, 3])
def test_up_undoes_the_size_of_down(factor):
    x = torch.rand(2, 3, 2 * factor, 5 * factor)
    smaller = down(3, factor)(x)
    assert smaller.shape == (2, 3, 2, 5)
    assert up(3, factor)(smaller).shape == x.shape


def test_one_number_serves_all_stages_and_a_list_each():
    assert each(3, (8, 16), "kernel_size") == [3, 3]
    assert each([3, 5], (8, 16), "kernel_size") == [3, 5]
    for bad in (0, [3], [3, 0], []):
        with pytest.raises(ValueError, match=r"kernel_size .* 2 stages of hidden_sizes \[8, 16\]"):
            each(bad, (8, 16), "kernel_size")


def test_a_stages_map_covers_the_padded_frame():
    assert map_size((14, 9), 4, 2) == (8, 6)  # 14×9 pixels padded to 16×12
    assert map_size(None, 4, 2) is None


def test_over_time_applies_a_module_to_each_map_alone():
    module, x = nn.Conv2d(2, 3, 3), torch.rand(4, 2, 2, 5, 5)
    expected = torch.stack([module(maps) for maps in x])
    torch.testing.assert_close(over_time(module, x), expected)
    assert over_time(nn.Identity(), x) is x


def test_resize_leaves_a_map_of_the_right_size_alone():
    x = torch.rand(1, 2, 3, 4)
    assert resize(x, torch.Size((3, 4))) is x
    assert resize(x, torch.Size((6, 8))).shape == (1, 2, 6, 8)


@pytest.mark.parametrize(("old", "new"), [((4, 4), (8, 8)), ((5, 7), (11, 9)), ((1, 1), (3, 4))])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_products_resize_as_interpolation_does(old, new, layout):
    maps = torch.randn(3, 5, *old, dtype=torch.float64).to(memory_format=layout).requires_grad_()
    expected = F.interpolate(maps, size=new, mode="bilinear", align_corners=False)
    resized = resize_by_products(maps, torch.Size(new))
    torch.testing.assert_close(resized, expected, rtol=0, atol=1e-12)
    assert resized.is_contiguous(memory_format=torch.channels_last)
    weight = torch.randn_like(expected)
    gradients = [torch.autograd.grad((x * weight).sum(), maps)[0] for x in (resized, expected)]
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-12)


def test_products_are_exported_for_any_batch():
    class Resize(nn.Module):
        def forward(self, maps):
            return resize_by_products(maps, torch.Size((8, 6)))

    sizes = ({0: torch.export.Dim("b", min=1, max=64)},)
    program = torch.export.export(Resize(), (torch.rand(2, 3, 4, 3),), dynamic_shapes=sizes)
    maps = torch.rand(5, 3, 4, 3)
    torch.testing.assert_close(program.module()(maps), Resize()(maps))


@pytest.mark.parametrize(("old", "new"), [((4, 4), (8, 8)), ((5, 7), (11, 9)), ((1, 1), (3, 4))])
def test_maps_are_resized_alike_on_every_device(old, new):
    maps = torch.randn(3, 5, *old, dtype=torch.float64)
    size = torch.Size(new)
    torch.testing.assert_close(
        resize(maps, size), resize_by_products(maps, size), rtol=0, atol=1e-12
    )


def test_a_change_of_resolution_is_a_convolution_and_a_leaky_relu():
    x = torch.randn(2, 3, 4, 6)
    smaller, larger = down(3, 2), up(3, 2)
    expected = F.leaky_relu(F.conv2d(x, *smaller[0].parameters(), stride=2, padding=1), 0.2)
    torch.testing.assert_close(smaller(x), expected)
    expected = F.conv_transpose2d(x, *larger[0].parameters(), stride=2, padding=1, output_padding=1)
    torch.testing.assert_close(larger(x), F.leaky_relu(expected, 0.2))
