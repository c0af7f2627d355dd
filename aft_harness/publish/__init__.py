"""What leaves and enters the house: boosters in the formats of other tools."""
