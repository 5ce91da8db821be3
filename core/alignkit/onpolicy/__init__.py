"""Rollouts for on-policy methods: sampling of completions, rewards, and scores under policy and reference."""
