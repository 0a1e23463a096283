"""What every training shares: losses, optimiser steps, strategies, checkpoints, scoring, cached features."""
