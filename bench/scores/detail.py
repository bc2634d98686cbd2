"""Extractors that see what a picture has beyond half its size: its high frequencies, and its quarters at full size."""

import torch
from torch import Tensor, nn

from segue.models.classifiers import Classifier
from segue.models.spectrum import enlarge, reduce

from .extractors import RandomConvolutions


class HighFrequencies(nn.Module):
    """Random convolutions of the frequencies that a picture of ``1 / factor`` of the size has no room for."""

    def __init__(self, factor: int = 2, channels: int = 3):
        super().__init__()
        self.factor, self.convolutions = factor, RandomConvolutions(channels)

    def forward(self, pictures: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, features]"""
        height, width = pictures.shape[-2:]
        low = enlarge(reduce(pictures, height // self.factor, width // self.factor), height, width)
        return self.convolutions(pictures - low)


class Quarters(nn.Module):
    """The features of a classifier of half the size, of the four quarters of a picture one by one."""

    def __init__(self, classifier: Classifier):
        super().__init__()
        self.classifier = classifier

    def forward(self, pictures: Tensor) -> Tensor:
        """[B, C, 2 S, 2 S] -> [B, 4 F]"""
        halves = (part for half in pictures.chunk(2, dim=2) for part in half.chunk(2, dim=3))
        return torch.cat([self.classifier.features(quarter) for quarter in halves], dim=1)
