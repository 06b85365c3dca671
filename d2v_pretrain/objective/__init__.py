"""The objective: views, teacher, targets, predictors, loss."""
