"""After a search: its best networks are trained in full and packaged for others to use."""

from trainers.finished.classifier import Classifier, load_classifier

__all__ = ["Classifier", "load_classifier"]
