"""Speed of networks by themselves: building, finding a batch size, measuring, the sheet."""
