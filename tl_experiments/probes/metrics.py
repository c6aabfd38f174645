from tl_experiments.training.metrics import Predictions


def metrics_of_each(logits, labels):
    return [Predictions(labels, labels, one).metrics() for one in logits]
