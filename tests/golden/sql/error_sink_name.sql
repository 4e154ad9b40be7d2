INSERT INTO emoji_count SELECT room FROM reactions;
