"""What a change is held against, and how a verdict reaches those who wait for it: comments, JUnit, annotations."""
