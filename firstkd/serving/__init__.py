"""What a student does with traffic: answer, abstain or pass it on."""
