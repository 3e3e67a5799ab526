"""Once-for-all MobileNetV3: the supernet, its networks, and their weights on disk."""

from trainers.ofa.network import Network, build_network
from trainers.ofa.supernet import LARGEST, Supernet
from trainers.ofa.weights import load_supernet, save_supernet

__all__ = [
    "LARGEST",
    "Network",
    "Supernet",
    "build_network",
    "load_supernet",
    "save_supernet",
]
