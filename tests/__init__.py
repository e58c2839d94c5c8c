"""Tests of Echo-LM; folders mirror those of the packages, and `helpers/` has what several of them share."""
