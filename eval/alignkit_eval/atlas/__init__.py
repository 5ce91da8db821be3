"""The atlas: every objective trained on the same pairs and compared with every other one, and how their gradients agree."""
