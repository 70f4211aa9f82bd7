"""Parts of test_losses: prepared inputs, the formulas in straight lines, and how both are measured."""
