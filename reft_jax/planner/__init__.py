"""Will a run fit hardware that is not here, and how long will it take?"""
