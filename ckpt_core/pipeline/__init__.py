"""What a save and a load are made of: staging, the queue, the steps in the background, reading back."""
