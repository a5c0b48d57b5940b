"The losses, each from the notebook of its name."
from gradient_surgery.losses.contrastive import ContrastiveLoss
from gradient_surgery.losses.multi_similarity import MultiSimilarityLoss
from gradient_surgery.losses.triplet import TripletMarginLoss

__all__ = ["ContrastiveLoss", "MultiSimilarityLoss", "TripletMarginLoss"]
