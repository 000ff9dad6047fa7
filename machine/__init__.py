"""The machine that this runs on, told without MXNet: its processor and its cores."""
